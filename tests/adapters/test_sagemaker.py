"""SageMaker: what botocore sends through its front, and the models of a multi-model endpoint."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from platforms import PUSH, PushContainer
from support import Reply

SAGEMAKER = next(platform for platform in PUSH if platform.name == "sagemaker")
On = Callable[..., PushContainer]


class Front(BaseHTTPRequestHandler):
    """What stands before a container: /endpoints/NAME/invocations goes on to /invocations.

    An error of the container's is a ModelError, as the service makes of it.
    """

    container = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        connection = http.client.HTTPConnection(self.container.removeprefix("http://"))
        told = {n: v for n, v in self.headers.items() if n.lower() != "authorization"}
        connection.request("POST", "/invocations", body, told)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status >= 400:
            message = {"Message": "the model failed", "OriginalStatusCode": answer.status}
            data = json.dumps({**message, "OriginalMessage": data.decode()}).encode()
            self.send_response(424)
            self.send_header("x-amzn-errortype", "ModelError")
        else:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower().startswith("x-amzn-") or name.lower() == "content-type":
                    self.send_header(name, value)
            self.send_header("zerowake-invocation", answer.getheader("zerowake-invocation", ""))
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def client(on: On) -> Iterator[Any]:
    """boto3's client of an endpoint whose container is ours."""
    Front.container = on(SAGEMAKER, "zoo.py:Batched").url
    with ThreadingHTTPServer(("127.0.0.1", 0), Front) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield boto3.client(
            "sagemaker-runtime",
            region_name="eu-west-1",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            aws_access_key_id="x",
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        server.shutdown()


def test_botocore_gets_the_result_and_its_attributes_back(client: Any) -> None:
    answer = client.invoke_endpoint(
        EndpointName="e",
        Body=json.dumps({"do": "ok"}),
        ContentType="application/json",
        Accept="application/json",
        CustomAttributes="trace=abc",
        InferenceId="inference-1",
    )
    assert json.loads(answer["Body"].read()) == {"did": "ok", "batch": 1}
    assert answer["CustomAttributes"] == "trace=abc" and answer["ContentType"] == "application/json"
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["zerowake-invocation"] == "inference-1"


def test_botocore_gets_errors_as_the_model_s(client: Any) -> None:
    with pytest.raises(ClientError) as failed:
        client.invoke_endpoint(EndpointName="e", Body=b'{"do": "refuse"}')
    assert failed.value.response["Error"]["Code"] == "ModelError"
    assert failed.value.response["OriginalStatusCode"] == 422
    assert "not acceptable" in failed.value.response["OriginalMessage"]


def test_headers_of_asynchronous_inference_change_nothing(on: On) -> None:
    headers = {
        "X-Amzn-SageMaker-InputLocation": "s3://b/k",
        "X-Amzn-SageMaker-RequestTTLSeconds": "60",
        "content-type": "application/json",
    }
    reply = on(SAGEMAKER, "zoo.py:Batched").request("POST", "/invocations", b'{"do": "x"}', headers)
    assert reply.json()["did"] == "x"


def test_serve_is_what_sagemaker_puts_behind_the_command(
    frozen: Callable[[str], Path], containers: list[PushContainer]
) -> None:
    snapshot = str(frozen("zoo.py:Add"))
    plain = type(SAGEMAKER)(
        "sagemaker", lambda port: {"SAGEMAKER_BIND_TO_PORT": str(port)}, probe=SAGEMAKER.probe
    )
    container = plain.start("serve", ZEROWAKE_SNAPSHOT=snapshot)
    containers.append(container)
    container.until_ready()
    assert container.request("POST", "/invocations", b'{"a": 1}').json() == 1006


# ---------------------------------------------------------------------------- several models


@pytest.fixture(scope="module")
def endpoint(containers: list[PushContainer]) -> PushContainer:
    container = SAGEMAKER.start(None, SAGEMAKER_MULTI_MODEL="true")
    containers.append(container)
    return container.until_ready()


def load(endpoint: PushContainer, name: str, url: object) -> Reply:
    order = json.dumps({"model_name": name, "url": str(url)}).encode()
    return endpoint.request("POST", "/models", order)


def loaded(endpoint: PushContainer) -> list[str]:
    return [model["modelName"] for model in endpoint.request("GET", "/models").json()["models"]]


def test_models_come_answer_and_go(
    endpoint: PushContainer, frozen: Callable[[str], Path], tmp_path: Path
) -> None:
    archive = tmp_path / "model"  # as an archive with a folder at its top is laid out
    archive.mkdir()
    (archive / "add").symlink_to(frozen("zoo.py:Add"))
    assert load(endpoint, "m-1", archive).status == 200
    assert load(endpoint, "m-2", frozen("zoo.py:Add")).status == 200  # the same, once more
    assert load(endpoint, "m-3", frozen("zoo.py:Once")).status == 200
    again = load(endpoint, "m-1", archive)
    assert again.status == 409 and "loaded already" in again.json()["detail"]
    assert loaded(endpoint) == ["m-1", "m-2", "m-3"]
    assert endpoint.request("GET", "/models/m-1").json() == {
        "modelName": "m-1",
        "modelUrl": str(archive),
    }
    for name in ("m-1", "m-2"):
        assert endpoint.request("POST", f"/models/{name}/invoke", b'{"a": 1}').json() == 1006
    assert endpoint.request("POST", "/models/m-3/invoke", b'{"do": "x"}').json() == "x"
    assert endpoint.request("DELETE", "/models/m-1").status == 200
    assert endpoint.request("DELETE", "/models/m-1").status == 404
    assert endpoint.request("GET", "/models/m-1").status == 404
    assert endpoint.request("POST", "/models/m-1/invoke", b'{"a": 1}').status == 404
    assert endpoint.request("POST", "/models/m-2/invoke", b'{"a": 1}').json() == 1006
    for name in ("m-2", "m-3"):
        assert endpoint.request("DELETE", f"/models/{name}").status == 200
    assert loaded(endpoint) == []
    assert endpoint.state() == "ready"


def test_what_cannot_be_loaded_is_not_there_afterwards(
    endpoint: PushContainer, tmp_path: Path
) -> None:
    assert load(endpoint, "m", tmp_path / "nothing").status >= 400
    assert load(endpoint, "m", tmp_path / "nothing").status != 409
    for order in (b"", b"{}", b"[]", b'{"model_name": "", "url": "x"}', b'{"model_name": "m"}'):
        assert endpoint.request("POST", "/models", order).status == 400
    assert loaded(endpoint) == [] and endpoint.state() == "ready"


def test_a_model_larger_than_the_memory_that_is_left_has_507(
    endpoint: PushContainer, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with open(tmp_path / "weights-00001.safetensors", "wb") as file:
        file.truncate(1 << 43)  # sparse: nothing is written
    refused = load(endpoint, "huge", tmp_path)
    assert refused.status == 507 and "unload another model" in refused.json()["detail"]


def test_a_model_that_does_not_wake_is_not_loaded(
    frozen: Callable[[str], Path], containers: list[PushContainer]
) -> None:
    endpoint = SAGEMAKER.start(None, SAGEMAKER_MULTI_MODEL="true", ZEROWAKE_TEST_WAKE_FAILS="1")
    containers.append(endpoint)
    endpoint.until_ready()
    failed = load(endpoint, "m", frozen("zoo.py:NeverWakes"))
    assert failed.status == 503 and "the database is not there" in failed.json()["detail"]
    assert loaded(endpoint) == [] and endpoint.state() == "ready"
    assert load(endpoint, "add", frozen("zoo.py:Add")).status == 200
