"""The endpoint on mosec: one worker, batches of 32, 10 ms. The master imports no torch."""

from typing import Any

from mosec import Server, Worker


class Embed(Worker):
    def __init__(self) -> None:
        from minilm import MiniLM

        self.minilm = MiniLM()

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, Any]]:
        vectors = self.minilm.embed([item["text"] for item in data])
        return [{"embedding": vector} for vector in vectors]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embed, num=1, max_batch_size=32, max_wait_time=10)
    server.run()
