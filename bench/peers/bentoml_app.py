"""The endpoint on BentoML: one worker, adaptive batches up to 32."""

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 60})
class Embed:
    def __init__(self) -> None:
        from minilm import MiniLM

        self.minilm = MiniLM()

    @bentoml.api(batchable=True, max_batch_size=32)
    def embed(self, texts: list[str]) -> list[list[float]]:
        return self.minilm.embed(texts)
