"""``zerowake.runtime.gateway.app`` and ``control``: which request goes where."""

import subprocess
import sys
from typing import Any

import pytest

from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import FunctionFailed


def test_the_root_is_the_only_function(edge: Any) -> None:
    edge.functions.serve("f")
    reply = edge.post("/", content=b"1")
    assert (reply.status_code, reply.content) == (200, b"1")
    refused = edge.request("GET", "/")
    assert refused.headers["allow"] == "POST" and "/docs" in refused.json()["detail"]


def test_the_root_of_several_functions_names_them(edge: Any) -> None:
    edge.functions.serve("f")
    edge.functions.serve("g")
    reply = edge.post("/", content=b"1")
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_function")
    assert "/invoke/f, /invoke/g" in reply.json()["detail"]
    refused = edge.request("GET", "/")
    assert refused.status_code == 405 and "/docs" in refused.json()["detail"]


def test_probes(edge: Any) -> None:
    assert edge.request("GET", "/livez").status_code == 200
    assert edge.request("HEAD", "/readyz").status_code == 200
    edge.functions.ready = False
    unready = edge.request("GET", "/readyz")
    assert (unready.status_code, unready.json()["code"]) == (503, "not_ready")
    edge.functions.serve("f")
    assert "ask again" in edge.request("GET", "/readyz").json()["detail"]
    edge.functions.reason = "its snapshot is quarantined"
    assert "f: its snapshot is quarantined" in edge.request("GET", "/readyz").json()["detail"]
    edge.functions.draining = True
    assert edge.request("GET", "/livez").status_code == 200
    draining = edge.request("GET", "/readyz")
    assert (draining.status_code, draining.json()["code"]) == (503, "draining")
    refused = edge.post("/livez")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_metrics_are_prometheus_text(edge: Any) -> None:
    reply = edge.request("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    assert "# TYPE zerowake_invocations_total counter" in reply.text
    openmetrics = edge.request(
        "GET", "/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    assert openmetrics.text.endswith("# EOF\n")


def test_functions_are_listed(edge: Any) -> None:
    edge.functions.serve("f")
    assert edge.request("GET", "/functions").json() == edge.functions.describe()


def test_sleep_and_wake_are_carried_out(edge: Any) -> None:
    edge.functions.serve("f")
    reply = edge.post("/functions/f/sleep", json={"depth": "zygote"})
    assert (reply.status_code, reply.json()) == (200, {"name": "f", "depth": "zygote"})
    reply = edge.post("/functions/f/wake")
    assert (reply.status_code, reply.json()) == (200, {"name": "f", "depth": "hot"})
    assert edge.functions.orders == [("f", Depth.ZYGOTE), ("f", Depth.HOT)]


def test_pages_of_other_sites_give_no_orders(edge: Any) -> None:
    edge.functions.serve("f")
    reply = edge.post("/functions/f/wake", headers={"Origin": "http://evil.example"})
    assert (reply.status_code, reply.json()["code"]) == (403, "cross_origin")
    assert edge.functions.orders == []
    own = f"http://{reply.request.headers['host']}"
    assert edge.post("/functions/f/wake", headers={"Origin": own}).status_code == 200


def test_orders_that_cannot_be_carried_out_say_why(edge: Any) -> None:
    edge.functions.serve("f")
    edge.functions.refusal = FunctionFailed("its wake raised", retry_after_s=3)
    reply = edge.post("/functions/f/wake")
    assert (reply.status_code, reply.json()["code"]) == (503, "function_failed")
    assert reply.headers["retry-after"] == "3"
    assert edge.post("/functions/g/wake").json()["code"] == "unknown_function"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"depth": "hot"}', "/depth"),
        ('{"depht": "cold"}', "/depth"),
        ('{"depth": "cold", "now": 1}', "/now"),
        ("", ""),
    ],
)
def test_orders_that_are_none_name_the_field(edge: Any, body: str, field: str) -> None:
    edge.functions.serve("f")
    reply = edge.post(
        "/functions/f/sleep", content=body, headers={"Content-Type": "application/json"}
    )
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_input")
    assert field in {error["field"] for error in reply.json()["errors"]}


def test_what_is_not_there_is_a_problem(edge: Any) -> None:
    missing = edge.request("GET", "/nowhere")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    refused = edge.request("DELETE", "/functions")
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == "GET"


def test_a_fault_of_the_gateway_is_a_problem_here_too(edge: Any) -> None:
    del edge.functions.infos
    for method, path in (("POST", "/"), ("POST", "/invoke/f"), ("GET", "/functions")):
        reply = edge.request(method, path, content=b"1")
        assert (reply.status_code, reply.json()["code"]) == (500, "internal")


def test_docs_and_the_document(edge: Any) -> None:
    edge.functions.serve("f", input_schema={"type": "string"})
    assert "openapi.json" in edge.request("GET", "/docs").text
    document = edge.request("GET", "/openapi.json").json()
    assert document["info"]["version"] == "1.2.3"
    assert {"/", "/invoke/f", "/functions", "/functions/{name}/sleep", "/livez", "/metrics"} <= set(
        document["paths"]
    )


def test_a_starting_gateway_imports_neither_torch_nor_fastapi() -> None:
    heavy = "{'torch', 'numpy', 'fastapi', 'pydantic', 'starlette', 'prometheus_client'}"
    code = f"import sys, zerowake.runtime.gateway.app; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert found.stdout.strip() == "[]"
