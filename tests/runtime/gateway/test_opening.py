"""``zerowake.runtime.gateway.opening``: what is said of a snapshot that is served."""

from collections.abc import Callable
from pathlib import Path

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.gateway.opening import open_target


def test_a_remedy_names_what_was_named(frozen: Callable[[str], Path]) -> None:
    path, url = str(frozen("linear.py:Linear")), "s3://bucket/linear"
    config = ServeConfig(device="cpu")
    assert f"`zerowake compile {path}` makes one" in open_target(path, config).form.reason
    assert f"`zerowake compile {url}` makes one" in open_target(path, config, url=url).form.reason
