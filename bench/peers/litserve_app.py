"""The endpoint on LitServe: one worker, batches of 32, 5 ms. Usage: litserve_app.py PORT"""

import sys
from typing import Any

import litserve


class Embed(litserve.LitAPI):
    def setup(self, device: str) -> None:
        from minilm import MiniLM

        self.minilm = MiniLM()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, x: list[str]) -> list[list[float]]:
        return self.minilm.embed(x)

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        return {"embedding": output}


if __name__ == "__main__":
    api = Embed(max_batch_size=32, batch_timeout=0.005, api_path="/embed")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
