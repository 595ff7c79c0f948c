"""The model as one module: tokens in, a vector of length one for each text out."""

import torch


class Encoder(torch.nn.Module):
    """A transformer, mean-pooled and normalised.

    ids, mask: [texts, tokens] int64, the mask 0 where a text is padded. Returns [texts, width].
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled)
