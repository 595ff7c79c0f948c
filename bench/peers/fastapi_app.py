"""The endpoint on plain FastAPI: a thread pool and no batching, as most people write it."""

from fastapi import FastAPI
from minilm import MiniLM
from pydantic import BaseModel


class Text(BaseModel):
    text: str


class Vector(BaseModel):
    embedding: list[float]


app = FastAPI()
minilm = MiniLM()


@app.post("/embed")
def embed(body: Text) -> Vector:
    return Vector(embedding=minilm.embed([body.text])[0])
