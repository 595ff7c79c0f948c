"""``zerowake.runtime.gateway``'s page at /docs, in a real browser that reaches nothing but the gateway."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse
from support import PATIENCE_S, Gateway

from zerowake.runtime.gateway import control

SEND = """<script>
const wait = setInterval(() => {
  const button = document.querySelector("details[open] button");
  if (button) { clearInterval(wait); button.click(); }
}, 20);
</script>"""


def browse(url: str) -> str:
    """What the page has become once its scripts have run, as text of the DOM."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.fail("/docs is tested with a browser, and there is none: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    options += ["--virtual-time-budget=20000", "--dump-dom"]
    run = subprocess.run(
        [browser, *options, url], capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert run.returncode == 0, run.stderr.decode()
    return unescape(run.stdout.decode())


def test_the_page_shows_a_served_function_and_needs_no_other_host(
    frozen: Callable[[str], Path], launch: Callable[..., Gateway]
) -> None:
    gateway = launch(frozen("examples/echo/app.py:echo"), "--depth", "cold")
    dom = browse(f"{gateway.url}/docs")
    main = dom[dom.index("<main>") :]
    assert "POST /invoke/echo" in main
    assert '"type": "object"' in main  # its schema
    assert '"hello": "world"' in main  # its example
    assert "/functions/{name}/sleep" in main
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+", dom) == []
    policy = gateway.request("GET", "/docs").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")


def test_the_form_makes_a_call(edge: Any) -> None:
    edge.functions.serve("f", input_schema={"type": "string"}, examples=("<b>hello</b>",))
    page = Path(control.__file__).with_name("docs.html").read_text() + SEND
    inner = edge.app

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (HTMLResponse(page) if scope["path"] == "/docs" else inner)(scope, receive, send)

    async def run() -> str:
        async with edge.listening(app) as port:
            return await asyncio.to_thread(browse, f"http://127.0.0.1:{port}/docs")

    dom = asyncio.run(run())
    assert "200 OK\nserver-timing: queue;dur=2.000" in dom
    assert [json.loads(call.body) for call in edge.functions.calls] == ["<b>hello</b>"]
