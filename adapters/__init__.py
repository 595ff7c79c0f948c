"""Platform adapters: each translates one platform's protocol into invocations, and nothing else."""
