"""Containers whose snapshot is still being fetched: probes are answered, calls wait for it."""

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from platforms import Answer, Platform, PullPlatform, PushPlatform
from support import PATIENCE_S

Start = Callable[..., Any]


class SlowStore:
    """A web server that answers once ``gate`` is set; ``asked`` once somebody waits for that."""

    def __init__(self, folder: Path) -> None:
        self.gate, self.asked = threading.Event(), threading.Event()
        store = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def parse_request(self) -> bool:
                store.asked.set()
                store.gate.wait(PATIENCE_S)
                return super().parse_request()

            def log_message(self, *_arguments: Any) -> None: ...

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def store(frozen: Callable[[str], Path]) -> Iterator[SlowStore]:
    made = SlowStore(frozen("zoo.py:Batched").parent)
    yield made
    made.close()


@pytest.fixture
def begin(
    store: SlowStore, frozen: Callable[[str], Path], tmp_path: Path
) -> Iterator[Callable[[Platform], Any]]:
    """Starts a container of the platform, of a snapshot that is on its way."""
    running: list[Any] = []

    def start(platform: Platform, name: str = "") -> Any:
        url = f"{store.url}/{name or frozen('zoo.py:Batched').name}"
        container = platform.start(url, XDG_CACHE_HOME=str(tmp_path / "cache"))
        running.append(container)
        assert store.asked.wait(PATIENCE_S)
        return container

    yield start
    for container in running:
        container.callers.shutdown(wait=False, cancel_futures=True)
        container.process.kill()
        container.process.wait()
        if isinstance(container.platform, PullPlatform):
            container.caller.close()


def test_probes_are_answered_and_calls_wait(
    begin: Callable[[Platform], Any], store: SlowStore, platform: PushPlatform
) -> None:
    container = begin(platform)
    container.until(lambda: any("serving nothing yet" in line for line in list(container.log)))
    assert container.state() == "starting"
    assert container.request("GET", "/livez").status == 200
    path = platform.path("batched")
    waiting = container.callers.submit(container.request, "POST", path, _body(platform))
    assert container.state() == "starting" and not waiting.done()
    store.gate.set()
    assert waiting.result(PATIENCE_S).status == 200
    container.until_ready()
    assert container.call({"do": "ok"}) == Answer(200, {"did": "ok", "batch": 1})


def _body(platform: PushPlatform) -> bytes:
    return json.dumps(platform.wrap({"do": "ok"})).encode()


def test_lambda_is_told_who_is_there_and_calls_come_afterwards(
    begin: Callable[[Platform], Any], store: SlowStore, pull: PullPlatform
) -> None:
    container = begin(pull)
    (id_,) = container.caller.call([{"do": "ok"}])
    if pull.name == "lambda":
        container.until(lambda: "event_next" in container.caller.api.server.requests)
        assert "next" not in container.caller.api.server.requests
    store.gate.set()
    assert container.caller.answer(id_).value["did"] == "ok"


@pytest.mark.parametrize("missing", [True, False])
def test_a_stop_or_a_failure_meanwhile(
    begin: Callable[..., Any], store: SlowStore, anywhere: Platform, missing: bool
) -> None:
    """Nobody hangs: neither the process nor who waits."""
    container = begin(anywhere, "no-such-snapshot" if missing else "")
    waiting = None
    if isinstance(anywhere, PushPlatform):
        container.until(lambda: any("serving nothing yet" in line for line in list(container.log)))
        path = anywhere.path("batched")
        waiting = container.callers.submit(container.request, "POST", path, _body(anywhere))
        container.request("GET", "/livez")
    if missing:
        store.gate.set()
        assert container.process.wait(PATIENCE_S) == 1
        container.until(lambda: any("no-such-snapshot" in line for line in list(container.log)))
    else:
        container.process.terminate()
        assert container.process.wait(PATIENCE_S) == 0
    if waiting is not None:
        with contextlib.suppress(OSError):  # it had not been read yet
            assert waiting.result(PATIENCE_S).status >= 500
