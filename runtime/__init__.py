"""Run functions from snapshots: gateway, zygotes and instances."""
