"""The endpoint on functions-framework: one request, one forward."""

from typing import Any

import flask
from minilm import MiniLM

minilm = MiniLM()


def embed(request: flask.Request) -> dict[str, Any]:
    return {"embedding": minilm.embed([request.get_json()["text"]])[0]}
