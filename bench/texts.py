"""The texts of the benchmarks, seeded, and the reference vectors each answer is checked against.

The reference is computed once, one text at a time, by a venv that has the model, and kept as a file.
"""

import hashlib
import json
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from client import Reply, Right
from common import CACHE, MIN_COSINE, OUR_BIN, child_env, cosine
from peers.registry import HERE, Peer

SHORT = "A quick answer is worth more than a perfect one that comes late."
COUNT = 512
_WORDS = (
    "the a of to in is was for on are with as at be this have from or one had by word but not what "
    "all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go "
    "see number no way could people my than first water been call who oil its now find long down day "
    "did get come made may part model answer machine sleep river paper city light music doctor "
    "market winter engine garden letter question train office window summer kitchen science"
)


def load_texts(count: int = COUNT, seed: int = 7) -> list[str]:
    """Texts of 5 to 60 words, 35 tokens on average."""
    pick = random.Random(seed)
    words = _WORDS.split()
    return [" ".join(pick.choices(words, k=pick.randint(5, 60))) for _ in range(count)]


def reference(venvs: Path) -> dict[str, list[float]]:
    """Vector by text, for `SHORT` and all load texts; from the cache when it is there."""
    texts = [SHORT, *load_texts()]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
    cached = CACHE / f"reference-{digest}.json"
    if not cached.exists():
        pythons = [*sorted(venvs.glob("*/bin/python")), OUR_BIN / "python"]
        python = next((path for path in pythons if path.exists()), None)
        if python is None:
            raise SystemExit("no venv has the model: run bench/install_peers.py")
        print(f"computing {len(texts)} reference answers with {python}", flush=True)
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            asked, answers = Path(folder, "texts.json"), Path(folder, "answers.json")
            asked.write_text(json.dumps(texts))
            argv = [str(python), str(HERE / "minilm.py"), str(asked), str(answers)]
            subprocess.run(argv, check=True, env=child_env({}))
            answers.rename(cached)
    vectors: list[list[float]] = json.loads(cached.read_text())
    return dict(zip(texts, vectors, strict=True))


def right(peer: Peer, text: str, vectors: Mapping[str, Sequence[float]]) -> Right:
    """Whether a peer's reply is a 200 with the vector of `text`."""

    def check(reply: Reply) -> bool:
        if reply.status != 200:
            return False
        try:  # Lambda's errors come with a 200
            vector = peer.response(reply.json())
        except (KeyError, TypeError, ValueError):
            return False
        return cosine(vector, vectors[text]) > MIN_COSINE

    return check
