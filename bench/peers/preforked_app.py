"""A parent that keeps the loaded, warmed model and forks plain FastAPI on demand.

One line on stdin, `PORT`, forks a server for it; the parent prints `forked PID NANOSECONDS` with the
monotonic clock just before the fork. The line `reap` ends the child; the end of stdin ends both.
"""

import os
import signal
import sys
import time

import torch
import uvicorn
from fastapi_app import app, minilm

# One thread until the fork: a child of a parent that used OpenMP's pool spins for 250 ms and more.
torch.set_num_threads(1)
minilm.embed(["warm up the parent"])
# The loop and the protocol are imported here, not by every child.
config = uvicorn.Config(app, host="127.0.0.1", access_log=False, log_level="warning")
config.load()


def serve(port: int) -> None:
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
    sys.stdin.close()
    config.port = port
    uvicorn.Server(config).run()


def main() -> None:
    child = 0
    print("ready", flush=True)
    for line in sys.stdin:
        if child:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
            child = 0
        if line.strip() != "reap":
            started_ns = time.monotonic_ns()
            child = os.fork()
            if child == 0:
                serve(int(line))
                os._exit(0)
            print(f"forked {child} {started_ns}", flush=True)
        else:
            print("reaped", flush=True)
    if child:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
