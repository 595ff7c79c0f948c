"""What single platforms want beside what all do: which adapter it is, ports, probes, shapes of bodies."""

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from platforms import KNATIVE, PUSH, PushContainer
from support import free_ports

from zerowake.adapters import KNOWN, azure, detect, find, name_of
from zerowake.adapters.container import Container
from zerowake.adapters.knative import CloudRun
from zerowake.adapters.vertex import Vertex
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import BadRequest, ConfigError


class Own(Container):
    """Somebody's own."""


On = Callable[..., PushContainer]
PLATFORMS = {platform.name: platform for platform in PUSH}


KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
# What a container of each platform finds, as far as it could be taken for another's.
SHOWN: list[tuple[str, dict[str, str], str]] = [
    ("lambda", {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_REGION": "us-east-1"}, ""),
    ("sagemaker", {"SAGEMAKER_BIND_TO_PORT": "8080", "SAGEMAKER_SAFE_PORT_RANGE": "1-2"}, ""),
    ("sagemaker", {"SAGEMAKER_MULTI_MODEL": "true"}, ""),
    ("sagemaker", {}, "serve"),
    ("vertex", {"AIP_HTTP_PORT": "8080", "AIP_STORAGE_URI": "gs://b/m", "PORT": "8080"}, ""),
    ("vertex", {"AIP_HTTP_PORT": "8080", **KUBERNETES}, ""),
    ("azure", {"FUNCTIONS_CUSTOMHANDLER_PORT": "3000", "FUNCTIONS_WORKER_RUNTIME": "custom"}, ""),
    ("runpod", {"RUNPOD_WEBHOOK_GET_JOB": "https://r/", "RUNPOD_ENDPOINT_ID": "e"}, ""),
    ("runpod-http", {"RUNPOD_ENDPOINT_ID": "e", "PORT": "80"}, ""),
    ("cloud-run", {"PORT": "8080", **KNATIVE}, ""),
    ("cloud-run", {"PORT": "8080", **KNATIVE, "CLOUD_RUN_TIMEOUT_SECONDS": "300"}, ""),
    ("knative", {"PORT": "8080", **KNATIVE, **KUBERNETES}, ""),
    ("container", {"PORT": "8080"}, ""),
    ("container", {"PORT": "8080", **KUBERNETES}, ""),
]


@pytest.mark.parametrize("name, environ, argument", SHOWN)
def test_the_environment_says_which_platform_it_is(
    name: str, environ: dict[str, str], argument: str, tmp_path: Path
) -> None:
    assert detect({"PATH": "/bin", **environ}, argument, tmp_path) == name


def test_kserve_is_known_by_the_folder_that_it_has_laid_the_model_in(tmp_path: Path) -> None:
    assert {name for name, _, _ in SHOWN} == KNOWN.keys() - {"kserve"}
    (tmp_path / "mnt" / "models").mkdir(parents=True)
    for environ in ({}, KNATIVE):
        assert detect({**environ, **KUBERNETES}, root=tmp_path) == "kserve"
        assert detect(environ, root=tmp_path) == ("cloud-run" if environ else "container")
    assert KNOWN["kserve"].folder == find({}, "kserve").capabilities.model


@pytest.mark.parametrize("platform", PUSH, ids=lambda platform: platform.name)
def test_containers_of_tests_run_in_such_environments(platform: Any, tmp_path: Path) -> None:
    if not platform.options:  # else it is named
        assert detect(platform.environ(80), root=tmp_path) == platform.name


def test_an_adapter_can_be_named() -> None:
    assert detect({}, "serve") == "sagemaker" and detect({}, "app.py:App") == "container"
    assert find({"K_SERVICE": "s", "ZEROWAKE_ADAPTER": "container"}) is Container
    assert find({}, "zerowake.adapters.knative:CloudRun") is CloudRun
    with pytest.raises(ConfigError, match=r"no adapter 'nothing'.*kserve"):
        find({}, "nothing")
    for name, said in (("json:loads", "is no class"), ("json:JSONDecoder", "lacks capabilities")):
        with pytest.raises(ConfigError, match=f"{name}' is no adapter: it {said}"):
            find({}, name)
    for name in KNOWN:
        assert find({}, name).capabilities.platform
        assert name_of(find({}, name)) == name
    assert name_of(Own) == f"{Own.__module__}:Own"


@pytest.mark.parametrize(
    "name, variable",
    [
        ("container", "PORT"),
        ("runpod-http", "PORT"),
        ("vertex", "AIP_HTTP_PORT"),
        ("azure", "FUNCTIONS_CUSTOMHANDLER_PORT"),
        ("sagemaker", "SAGEMAKER_BIND_TO_PORT"),
    ],
)
@pytest.mark.parametrize("text", ["eighty", "-1", "70000", "²"])
def test_a_port_that_is_none_is_named(name: str, variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        find({}, name).configure({variable: text}, ServeConfig())


def test_a_port_is_chosen_by_the_variable_that_the_table_names() -> None:
    for name in KNOWN:
        where = find({}, name).capabilities.port
        if where is not None:
            for text, wanted in (("", where.default), ("0", 0)):
                config = find({}, name).configure({where.variable: text}, ServeConfig())
                assert (config.port, config.port_from) == (wanted, where.variable)


def test_a_port_that_is_taken_is_told_with_what_chooses_another() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        environ = {"AIP_HTTP_PORT": str(taken.getsockname()[1])}
        config = Vertex.configure(environ, ServeConfig())
        with pytest.raises(ConfigError, match="choose another with AIP_HTTP_PORT"):
            Vertex(environ, config).open()


def test_cloud_run_drains_within_its_ten_seconds() -> None:
    assert CloudRun.configure({}, ServeConfig(drain_s=30.0)).drain_s < 10
    assert CloudRun.configure({}, ServeConfig(drain_s=2.0)).drain_s == 2.0


def test_probes_of_knative_are_told_from_requests(on: On) -> None:
    container = on(PLATFORMS["knative"], "zoo.py:Batched")
    assert any("running on: Knative (adapter knative)" in line for line in container.log)
    probe = container.request("GET", "/", headers={"K-Network-Probe": "queue"})
    assert (probe.status, probe.body) == (200, b"queue")
    assert (
        container.request("GET", "/any/path", headers={"user-agent": "kube-probe/1.35"}).status
        == 200
    )
    assert container.request("GET", "/").status == 405
    live = container.request("GET", "/livez", headers={"user-agent": "kube-probe/1.35"})
    assert live.json() == {"status": "alive"}


def test_health_of_runpod_may_have_a_port_of_its_own(
    frozen: Callable[[str], Any], containers: list[PushContainer]
) -> None:
    (health,) = free_ports(1)
    platform = replace(PLATFORMS["runpod-http"], probe=("/healthz", 200, 204, 503))
    container = platform.start(
        frozen("zoo.py:Add"), PORT_HEALTH=str(health), HEALTH_CHECK_PATH="/healthz"
    )
    containers.append(container)
    container.until_ready()
    calls = container.url
    container.url = f"http://127.0.0.1:{health}"
    assert container.state() == "ready"
    container.url = calls


def test_raw_predictions_of_vertex_go_to_the_function_as_they_are(on: On) -> None:
    container = on(PLATFORMS["vertex"], "zoo.py:Add")
    path = "/v1/endpoints/1:predict"
    assert container.request("POST", path, b'{"a": 1}').json() == 1006
    body = {"instances": [{"a": 1}, {"a": 2, "b": 0}], "parameters": {"b": 1}}
    reply = container.request("POST", path, json.dumps(body).encode())
    assert reply.json() == {"predictions": [1002, 1002]}
    for parameters in ("no", [1]):
        odd = json.dumps({**body, "parameters": parameters}).encode()
        assert container.request("POST", path, odd).status == 400
    odd = json.dumps({"instances": [1], "parameters": {"b": 1}}).encode()
    assert container.request("POST", path, odd).status == 400


def test_bytes_in_instances_are_base64(on: On) -> None:
    container = on(PLATFORMS["kserve"], "zoo.py:Reverse")
    path = "/v1/models/reverse:predict"
    body = {"instances": [{"b64": "YWJj"}, "abc"]}
    reply = container.request("POST", path, json.dumps(body).encode())
    assert reply.json() == {"predictions": [{"b64": "Y2Jh"}, {"b64": "Y2Jh"}]}
    for odd in ({"b64": "%"}, 5, {"b64": "YQ==", "x": 1}):
        body = {"instances": [odd]}
        assert container.request("POST", path, json.dumps(body).encode()).status == 400


def test_proxied_requests_of_azure_may_have_any_route(on: On) -> None:
    container = on(PLATFORMS["azure"], "zoo.py:Once")
    for path in ("/api/f", "/api/orders/7/items"):
        assert container.request("POST", path, b'{"do": "x"}').json() == "x"
    assert container.request("GET", "/api/f").status == 405
    assert container.request("GET", "/readyz").status == 200


def trigger(container: PushContainer, data: Any) -> Any:
    body = json.dumps({"Data": data, "Metadata": {"sys": {"MethodName": "QueueTrigger"}}})
    return container.request("POST", "/QueueTrigger", body.encode())


def test_triggers_of_azure_bring_texts_values_and_bindings(on: On) -> None:
    container = on(PLATFORMS["azure"], "zoo.py:Once")
    for item in ('{"do": "x"}', {"do": "x"}):
        assert trigger(container, {"item": item}).json() == {
            "Outputs": {},
            "Logs": [],
            "ReturnValue": "x",
        }
    assert trigger(container, {"do": "by binding", "log": ""}).json()["ReturnValue"] == "by binding"
    for odd in (None, {}, [], "x"):
        assert trigger(container, odd).status == 400
    assert trigger(container, {"item": "no json"}).status == 422


def test_what_an_http_trigger_of_azure_says_of_its_request() -> None:
    http = {
        "Url": "http://h/\u00e9?a=\u6f22",
        "Method": "get",
        "Headers": {"A": ["\u6f22", 1], "B": ""},
    }
    head = azure._head(http)
    assert (head.method, head.path, head.query) == ("GET", "/%C3%A9", "a=%E6%BC%A2")
    assert head.headers == (("a", "\xe6\xbc\xa2"), ("a", "1"), ("b", ""))
    assert azure._head({"Url": "", "Method": "GET", "Headers": None}).path == "/"
    with pytest.raises(BadRequest, match="Url"):
        azure._head({**http, "Url": "http://["})


def test_http_triggers_of_azure_have_their_status_inside(on: On) -> None:
    container = on(PLATFORMS["azure"], "zoo.py:Batched")
    request = {"Url": "http://h/api/f", "Method": "POST", "Body": '{"do": "raise"}', "Headers": {}}
    outputs = trigger(container, {"req": request}).json()["Outputs"]
    assert outputs["res"]["statusCode"] == 500 and "this item is bad" in outputs["res"]["body"]
    request["Body"] = '{"do": "ok"}'
    outputs = trigger(container, {"req": request}).json()["Outputs"]
    assert outputs["res"]["statusCode"] == 200
    assert json.loads(outputs["res"]["body"]) == {"did": "ok", "batch": 1}
    # A trigger that is no HTTP request fails as a whole: the host tries it again.
    assert trigger(container, {"item": {"do": "raise"}}).status == 500
