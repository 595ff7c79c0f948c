"""The endpoint on AWS's own Python runtime client: one invocation, one forward."""

from typing import Any

from minilm import MiniLM

minilm = MiniLM()


def embed(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return {"embedding": minilm.embed([event["text"]])[0]}
