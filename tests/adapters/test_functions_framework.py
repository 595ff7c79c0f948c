"""Functions of Google's functions-framework, by its own server and by us: the same requests, the same replies.

The cases are those of its conformance tests, and more. The package cannot share our environment, where its CloudEvents SDK is another one.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import parts
import pytest
from framework_server import Server
from google_events import EVENTS, ID
from platforms import MARKS, LambdaCaller
from support import APPS, PATIENCE_S, ROOT, free_ports

PACKAGE = "functions-framework==3.10.2"
APP = APPS / "cloud_functions.py"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter that has the framework; what else we need it takes from our environment."""
    found = parts.venv(PACKAGE)
    (site,) = found.parent.parent.glob("lib/python*/site-packages")
    (ours,) = Path(sys.prefix).glob("lib/python*/site-packages")
    # Comes after its own packages, of which the CloudEvents SDK is there as well.
    (site / "zz_shared.pth").write_text(f"{ours}\n")
    return found


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """``start("-m", "zerowake", "serve", ..., NAME="value")``, with {port} for a free one."""
    running: list[Server] = []

    def begin(*arguments: str, ready: bool = True, **environ: str) -> Server:
        (port,) = free_ports(1)
        folder = tmp_path_factory.mktemp("function")
        kept = {name: value for name, value in os.environ.items() if name not in MARKS}
        process = subprocess.Popen(
            [str(python), *(each.format(port=port) for each in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={
                **kept,
                "PYTHONPATH": str(ROOT / "src"),
                **{name: text.format(port=port) for name, text in environ.items()},
            },
        )
        server = Server(process, port, folder)
        running.append(server)
        if ready:
            server.until(server.listens)
        return server

    yield begin
    for server in running:
        server.stop()


Both = Callable[..., tuple[Server, Server]]


@pytest.fixture(scope="module")
def both(start: Start) -> Both:
    """``both("on_request")``: ours and theirs with this function."""
    made: dict[str, tuple[Server, Server]] = {}

    def pair(function: str, signature: str = "") -> tuple[Server, Server]:
        if function not in made:
            more = {"FUNCTION_SIGNATURE_TYPE": signature} if signature else {}
            theirs = start(
                *("-m", "functions_framework", "--target", function, "--source", str(APP)),
                *("--host", "127.0.0.1", "--port", "{port}"),
                **more,
            )
            ours = start(
                *("-m", "zerowake", "run"),
                FUNCTION_TARGET=function,
                FUNCTION_SOURCE=str(APP),
                PORT="{port}",
                **more,
            )
            made[function] = ours, theirs
        return made[function]

    return pair


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("GET", "/", None, {}),
        ("GET", "/?x=1&x=2&y=a%20b+c&z", None, {"cookie": "a=1; b=2"}),
        ("POST", "/", b'{"a": [1, null]}', JSON),
        ("POST", "/", b"a=1&a=2&b=%C3%A9", {"content-type": "application/x-www-form-urlencoded"}),
        ("POST", "/", b"\x00\xff not JSON", {"content-type": "application/json"}),
        ("POST", "/", b"\x1f\x8b", {"content-encoding": "gzip"}),
        ("DELETE", "/no/such%2Fpath/%25/", None, {}),
        ("PATCH", "/", b"part", {"x-many": "a, b", "x_hidden": "1"}),
        ("OPTIONS", "/any", None, {"origin": "http://there", "webhook-request-origin": "x"}),
        ("GET", "/tuple", None, {}),
        ("GET", "/cookies", None, {}),
        ("GET", "/abort", None, {}),
        ("GET", "/raise", None, {}),
        ("GET", "/refuse", None, {}),
        ("GET", "/redirect", None, {}),
        ("GET", "/binary", None, {}),
        ("GET", "/unicode/%C3%A9", None, {}),
        ("GET", "/nothing", None, {}),
        ("GET", "/unchanged", None, {}),
        ("GET", "/stream", None, {}),
        ("GET", "/json?x=y", None, {}),
        ("GET", "/robots.txt", None, {}),
        ("GET", "/functions", None, {}),
        ("GET", "/docs", None, {}),
        ("HEAD", "/", None, {}),
        ("HEAD", "/unicode/%C3%A9", None, {}),
        ("HEAD", "/nothing", None, {}),
        ("POST", "/", b'{"status": 503}', JSON),
        ("PUT", "/", iter([b"in ", b"chunks"]), {}),
    ],
)
def test_requests_are_answered_as_by_the_framework_itself(
    both: Both, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    ours, theirs = both("on_request")
    if isinstance(body, Iterator):
        chunks = list(body)
        found = ours.exchange(method, path, iter(chunks), headers)
        wanted = theirs.exchange(method, path, iter(chunks), headers)
        # We have its end, so we tell the function its length.
        wanted.output["headers"] = [
            h for h in wanted.output["headers"] if h[0] != "Transfer-Encoding"
        ]
        found.output["headers"] = [h for h in found.output["headers"] if h[0] != "Content-Length"]
    else:
        found = ours.exchange(method, path, body, headers)
        wanted = theirs.exchange(method, path, body, headers)
    if path == "/stream":  # in one piece, so its length is known
        found.headers.remove(("content-length", "3"))
    assert found == wanted


def test_what_the_conformance_client_sends(both: Both) -> None:
    for server in both("helloWorld"):
        told = server.exchange("POST", "/", b'"PASS"', JSON)
        assert (told.status, told.output) == (200, '"PASS"')


def test_typed_functions(both: Both) -> None:
    ours, theirs = both("on_value")
    for body in (b'{"message": ["hello", 1.5]}', b"no JSON"):
        found = ours.exchange("POST", "/", body, JSON)
        assert found == theirs.exchange("POST", "/", body, JSON)
    assert ours.exchange("POST", "/", b"[1]", JSON).json() == {"got": [1]}


def structured(event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    return json.dumps(event).encode(), {"content-type": "application/cloudevents+json"}


def binary(event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    attributes = {f"ce-{n}": v for n, v in event.items() if n not in ("data", "datacontenttype")}
    return json.dumps(event["data"]).encode(), {**attributes, **JSON}


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("function", ["on_cloud_event", "on_event"])
def test_events_reach_functions_of_both_signatures(both: Both, function: str, name: str) -> None:
    ours, theirs = both(function, "event" if function == "on_event" else "")
    old, new = EVENTS[name]
    for body, headers in (structured(new), binary(new), (json.dumps(old).encode(), JSON)):
        found = ours.exchange("POST", "/", body, headers)
        assert found == theirs.exchange("POST", "/", body, headers)
        assert (found.status, found.body) == (200, b"OK")
        if function == "on_cloud_event":
            wanted = dict(new)
            assert found.output["data"] == wanted.pop("data")
            assert found.output["attributes"] == wanted
        elif headers["content-type"] != "application/cloudevents+json":  # which it does not convert
            assert found.output["context"]["eventId"] == ID
            assert found.output["data"] == old["data"]


def test_what_is_no_event(both: Both) -> None:
    for function in ("on_cloud_event", "on_event"):
        ours, theirs = both(function, "event" if function == "on_event" else "")
        for body, headers in [
            (b"{}", {"content-type": "application/cloudevents+json"}),
            (b"no JSON", JSON),
            (b"[]", {"content-type": "application/cloudevents-batch+json"}),
            (b"{}", {**JSON, "ce-specversion": "1.0"}),
        ]:
            found = ours.exchange("POST", "/", body, headers)
            wanted = theirs.exchange("POST", "/", body, headers)
            assert (found.status, found.output) == (wanted.status, None)
        assert ours.exchange("GET", "/") == theirs.exchange("GET", "/")
    assert both("on_cloud_event")[0].exchange("POST", "/", b"{}", JSON).status == 400


@pytest.fixture
def command(python: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``command("freeze", ...)``: a command to its end, in a folder of its own."""

    def run(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), "-m", "zerowake", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environ},
            timeout=2 * PATIENCE_S,
        )

    return run


def test_freezing_calls_it_only_where_a_probe_is_given(command: Any, tmp_path: Path) -> None:
    frozen = command("freeze", f"{APP}:on_request", "--out", "snapshots")
    assert frozen.returncode == 0, frozen.stderr
    assert not (tmp_path / "function_output.json").exists()
    verified = command("verify", frozen.stdout.strip())
    assert "the proof holds no calls" in verified.stdout, verified.stderr
    assert "(http)" in command("inspect", frozen.stdout.strip()).stdout
    (tmp_path / "probe.json").write_text('[{"a": 1}]')
    probed = command("freeze", f"{APP}:helloWorld", "--out", "snapshots", "--probe", "probe.json")
    assert probed.returncode == 0, probed.stderr
    assert json.loads((tmp_path / "function_output.json").read_text()) == '{"a":1}'
    assert "fields compared: 1" in command("verify", probed.stdout.strip()).stdout


def test_what_cannot_be_one(command: Any, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import functions_framework.aio\n"
        "@functions_framework.aio.http\nasync def later(request): pass\n"
        "def plain(request): pass\n"
    )
    (tmp_path / "two.py").write_text(
        "import functions_framework\nimport zerowake\n"
        "@functions_framework.http\ndef hello(request): pass\n"
        "@zerowake.function\ndef add(x: int) -> int: return x\n"
    )
    (tmp_path / "through.py").write_text("from other import later")
    for target, said in [
        ("other.py:later", "not from functions_framework.aio"),
        ("through.py:later", "not from functions_framework.aio"),
        ("other.py:plain", "FUNCTION_SIGNATURE_TYPE"),
        ("other.py:nothing", "has no nothing; its functions: later"),
        ("two.py:nope", "has no nope; its functions: add, hello"),
    ]:
        refused = command("freeze", target, "--out", "snapshots")
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr
    for target in ("other.py:plain", "two.py:hello"):
        refused = command("freeze", target, "--out", "x", FUNCTION_SIGNATURE_TYPE="htp")
        assert "FUNCTION_SIGNATURE_TYPE is 'htp'; it is one of http, " in refused.stderr


def test_beside_others_it_has_a_path_of_its_own(start: Start) -> None:
    server = start(
        *("-m", "zerowake", "serve", f"{APP}:on_request", f"{APP}:undecorated", "--port", "{port}"),
        FUNCTION_SIGNATURE_TYPE="http",
    )
    server.until(lambda: server.raw("GET", "/readyz").status == 200)
    told = server.exchange("DELETE", "/invoke/on_request/a%2Fb?x=1")
    assert (told.status, told.body) == (200, b"DELETE /a/b")
    assert (told.output["path"], told.output["args"]) == ("/a/b", {"x": ["1"]})
    assert server.exchange("GET", "/invoke/on_request").body == b"GET /"
    assert server.exchange("GET", "/invoke/undecorated?x=2").body == b"2"
    assert server.exchange("GET", "/invoke/neither/x").status == 405
    assert server.exchange("POST", "/x").status == 404
    names = [function["name"] for function in server.exchange("GET", "/functions").json()]
    assert names == ["on_request", "undecorated"]
    assert "/invoke/on_request" in server.exchange("GET", "/openapi.json").json()["paths"]


@pytest.mark.parametrize("verb", ["serve", "run"])
def test_calls_that_wait_for_each_other_meet(start: Start, verb: str) -> None:
    port = ["--port", "{port}"] if verb == "serve" else []
    server = start("-m", "zerowake", verb, f"{APP}:on_request", *port, PORT="{port}")
    with ThreadPoolExecutor(3) as callers:
        told = list(callers.map(lambda n: server.raw("GET", f"/meet?{n}"), range(3)))
    assert [each.body for each in told] == [b"met"] * 3


def test_the_example_of_the_documentation(start: Start, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "adapters.md").read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    (example,) = [each for each in examples if "def hello" in each]
    (tmp_path / "main.py").write_text(example)
    server = start("-m", "zerowake", "serve", f"{tmp_path}/main.py:hello", "--port", "{port}")
    told = server.exchange("PATCH", "/any/where")
    assert (told.status, told.body) == (200, b"PATCH /any/where")
    assert ("x-hello", "yes") in told.headers
    assert server.exchange("GET", "/functions").json()[0]["name"] == "hello"


def test_one_that_ends_its_process_is_told_and_goes_on(both: Both) -> None:
    ours, _ = both("on_request")
    told = ours.exchange("GET", "/exit")
    assert (told.status, told.json()["code"]) == (500, "handler_failed")
    assert ours.exchange("GET", "/readyz").status == 200
    counted = ours.raw("GET", "/metrics").body.decode()
    assert 'zerowake_invocations_total{function="on_request",outcome="client_error"}' in counted


def test_on_lambda(start: Start) -> None:
    caller = LambdaCaller()
    try:
        environ = {**caller.environ, "ZEROWAKE_LAMBDA_INVOKE_MODE": "BUFFERED"}
        server = start("-m", "zerowake", "run", f"{APP}:on_request", ready=False, **environ)
        server.until(caller.polled)

        def answer(event: Any) -> Any:
            (id_,) = caller.call([event])
            return caller.api.do(caller.api.server.answer(id_)).json()

        def url(method: str, path: str, query: str = "", body: str | None = None) -> Any:
            http = {"method": method, "path": path, "sourceIp": "192.0.2.1"}
            event = {"version": "2.0", "rawPath": path, "rawQueryString": query, "body": body}
            return answer({**event, "headers": JSON, "requestContext": {"http": http}})

        told = url("POST", "/any/where", "x=1", '{"status": 409}')
        assert (told["statusCode"], told["body"]) == (409, "as told: 409")
        output = json.loads((server.folder / "function_output.json").read_text())
        assert (output["method"], output["path"]) == ("POST", "/any/where")
        assert (output["args"], output["client"]) == ({"x": ["1"]}, "192.0.2.1")
        told = url("GET", "/cookies")
        assert told["cookies"] == ["a=1; Path=/", "b=2; HttpOnly; Path=/"]
        assert url("DELETE", "/functions")["body"] == "DELETE /functions"
        assert url("GET", "/binary")["isBase64Encoded"] is True
        assert url("GET", "/readyz")["body"] == '{"status": "ready"}'

        assert answer({"a": 1}) == "POST /"
        failed = answer({"status": 404})
        assert failed["errorType"] == "Function.HttpFailed"
        assert "as told: 404" in failed["errorMessage"]
        records = [
            {"messageId": f"m{i}", "eventSource": "aws:sqs", "body": json.dumps(body)}
            for i, body in enumerate([{}, {"status": 500}, [1]])
        ]
        assert answer({"Records": records}) == {"batchItemFailures": [{"itemIdentifier": "m1"}]}
    finally:
        caller.close()


def test_on_azure(start: Start) -> None:
    server = start(
        "-m", "zerowake", "run", f"{APP}:on_request", FUNCTIONS_CUSTOMHANDLER_PORT="{port}"
    )
    assert server.exchange("PUT", "/api/deep/er").body == b"PUT /api/deep/er"
    request = {
        "Url": "https://app.azurewebsites.net/api/caf\xe9?x=\u20ac",
        "Method": "GET",
        "Headers": {"X-One": ["a", "b"]},
    }
    told = server.exchange("POST", "/f", json.dumps({"Data": {"req": request}}).encode(), JSON)
    assert told.json()["Outputs"]["res"]["statusCode"] == 200
    assert (told.output["path"], told.output["args"]) == ("/api/café", {"x": ["€"]})
    assert ["X-One", "a,b"] in told.output["headers"]
    event = json.dumps({"Data": {"item": '{"status": 500}'}}).encode()
    told = server.exchange("POST", "/f", event, JSON)
    assert (told.status, told.json()["code"]) == (500, "http_failed")
    event = json.dumps({"Data": {"item": "5"}}).encode()
    assert server.exchange("POST", "/f", event, JSON).json()["ReturnValue"] == "POST /"
