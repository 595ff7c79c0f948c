"""``zerowake deploy``: what it fills in, what it refuses, and that the example's files are up to date."""

import contextlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import example
import pytest
import yaml
from support import ROOT, zerowake

from zerowake.adapters import cli
from zerowake.adapters.deploy.commands import notes, rendered
from zerowake.adapters.deploy.needs import Needs, estimate
from zerowake.adapters.deploy.platforms import PLATFORMS, Place, accelerator_gib
from zerowake.adapters.deploy.render import render
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.forms import FormName
from zerowake.runtime.info import FunctionInfo
from zerowake.runtime.settings import Batch, Settings
from zerowake.snapshot.store import open_snapshot

PLACE = Place(image="registry/embed:1", url="s3://bucket/embed")


def needs(weights_mb: float = 100, *, gpu: bool = False, **settings: Any) -> Needs:
    known = Settings("embed", **settings)
    form = FormName.EAGER
    nbytes = int(weights_mb * 2**20)
    return estimate(known, nbytes, form, name="embed", snapshot="embed-1", gpu=gpu)


def test_the_examples_files_are_what_the_templates_give() -> None:
    for path, content in example.files().items():
        assert path.read_text() == content, f"{path}: run python tests/example.py"
    assert set((ROOT / "infra" / "embed").iterdir()) <= example.files().keys()


def test_the_command_knows_all_platforms() -> None:
    assert set(cli._PLATFORMS) == PLATFORMS.keys()
    assert all(platform in cli._PLATFORM_HELP for platform in PLATFORMS)


def test_a_function_of_requests_has_several_processes_in_a_container() -> None:
    form = FormName.PLAIN
    found = estimate(Settings("hello"), 0, form, name="hello", snapshot="hello-1", processes=8)
    assert found.concurrency == 8 and found.memory_mb > needs(0).memory_mb / 2


@pytest.mark.parametrize(
    "platform, url, told",
    [
        ("cloud-run", "s3://b/embed", "AWS_ACCESS_KEY_ID"),
        ("lambda", "s3://b/embed", ""),
        ("cloud-run", "gs://b/embed", ""),
        ("azure", "gs://b/embed", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("runpod", "/models/embed", ""),
    ],
)
def test_what_containers_may_not_read_by_themselves_is_told(
    frozen: Callable[[str], Path], platform: str, url: str, told: str
) -> None:
    info = FunctionInfo.of(open_snapshot(frozen("zoo.py:Add")).manifest)
    said = " ".join(notes(platform, info, url))
    assert told in said and ("no right to read" in said) is bool(told)
    assert "at most one container runs" in said


@pytest.mark.parametrize("verb", ["deploy", "bundle"])
def test_a_snapshot_that_is_named_by_its_url(
    frozen: Callable[[str], Path], tmp_path: Path, verb: str
) -> None:
    snapshot = frozen("zoo.py:Add")
    with serving(snapshot.parent) as port:
        url = f"http://127.0.0.1:{port}/{snapshot.name}"
        given = ["cloud-run", url, "--dry-run", "--image", "i"] if verb == "deploy" else [url]
        environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        run = zerowake(verb, *given, "--out", tmp_path / "out", env=environ)
    assert run.returncode == 0, run.stderr
    assert any(
        url in path.read_text()
        for path in (tmp_path / "out").iterdir()
        if path.is_file() and path.suffix != ".whl"
    )


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A web server of the files below ``folder``."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def test_needs_come_from_settings_and_weights() -> None:
    found = needs(100, batch=Batch(16), timeout_s=12.5, instances=(1, 3))
    assert (found.timeout_s, found.max_size, found.concurrency) == (18, 16, 32)
    assert found.instances == (1, 3)
    assert found.memory_mb == 750  # (400 + 100) * 1.5
    assert needs(100).concurrency == 2  # one runs, one waits
    assert needs(1000).disk_mb > 1000


def test_runpods_queue_and_its_load_balancer() -> None:
    for platform, adapter in (("runpod", "runpod-http"), ("runpod-queue", "runpod")):
        files = rendered(platform, needs(), PLACE)
        template, endpoint = (json.loads(files[f"{n}.json"]) for n in ("template", "endpoint"))
        assert template["env"]["ZEROWAKE_ADAPTER"] == adapter
        assert ("ports" in template) == (adapter == "runpod-http")  # nobody calls a queue's worker
        queue = adapter == "runpod"
        assert endpoint["scalerType"] == ("QUEUE_DELAY" if queue else "REQUEST_COUNT")


def test_all_platforms_can_be_rendered_and_read_back() -> None:
    for platform in PLATFORMS:
        for gpu in (False, True):
            found = replace(needs(4000, gpu=gpu), trust=("sha256:" + "a" * 64,))
            for name, content in rendered(platform, found, PLACE).items():
                assert "<<" not in content
                if name.endswith(".json"):
                    json.loads(content)
                elif platform not in ("lambda", "sagemaker"):  # these have CloudFormation's tags
                    yaml.safe_load(content)


def service(found: Needs) -> Any:
    spec = yaml.safe_load(rendered("cloud-run", found, PLACE)["service.yaml"])["spec"]
    return spec["template"]["spec"]


def test_memory_goes_in_the_platforms_steps() -> None:
    assert service(needs(100))["containers"][0]["resources"]["limits"] == {
        "cpu": "1",
        "memory": "1536Mi",  # 750 for the process, 366 for the fetched snapshot
    }
    assert service(needs(5000))["containers"][0]["resources"]["limits"]["cpu"] == "4"
    gpu = service(needs(5000, gpu=True))
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["nodeSelector"] == {"run.googleapis.com/accelerator": "nvidia-l4"}
    values = yaml.safe_load(rendered("kubernetes", needs(100), PLACE)["values.yaml"])
    assert values["resources"]["memory"] == "768Mi"


@pytest.mark.parametrize(
    "weights_mb, gib", [(100, 3), (4000, 6), (5000, 12), (14_000, 24), (38_000, 48)]
)
def test_a_lambda_gpu_is_the_smallest_that_holds_the_weights(weights_mb: int, gib: int) -> None:
    assert accelerator_gib(needs(weights_mb, gpu=True)) == gib


@pytest.mark.parametrize(
    "platform, found, said",
    [
        ("lambda", needs(timeout_s=1000), "timeout of 1005 s, at most 900"),
        ("lambda", needs(60_000, gpu=True), "memory"),
        ("lambda", replace(needs(), memory_mb=99999), "memory of 99999 MB, at most 32768"),
        ("knative", needs(timeout_s=700), "timeout of 705 s"),
        ("cloud-run", needs(40_000), "memory"),
        ("sagemaker", needs(timeout_s=90), "60 s"),
        ("azure", needs(20_000), "workload profile"),
    ],
)
def test_what_a_platform_cannot_give_is_refused(platform: str, found: Needs, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rendered(platform, found, PLACE)


def test_lambda_takes_snapshots_out_of_s3_or_the_image() -> None:
    with pytest.raises(ConfigError, match="s3://BUCKET/KEY"):
        rendered("lambda", needs(), Place(url="https://example.com/embed"))
    made = rendered("lambda", needs(5000), Place(url="/opt/zerowake/snapshot"))["template.yaml"]
    assert made.count('ZEROWAKE_SNAPSHOT: "/opt/zerowake/snapshot"') == 2 == made.count("opt/zero")
    assert "SnapshotBucket" not in made and "s3:" not in made and "Size: 512" in made


def test_a_template_has_values_and_conditional_lines() -> None:
    text = "a: <<a>>\n<<?b>>b: <<b>>\n<<!b>>no b\n"
    assert render(text, {"a": 1, "b": "x"}) == "a: 1\nb: x\n"
    assert render(text, {"a": 1, "b": ""}) == "a: 1\nno b\n"
    with pytest.raises(KeyError):
        render(text, {"b": 1})


def test_the_command_fills_in_a_snapshot(frozen: Callable[[str], Path], tmp_path: Path) -> None:
    snapshot = frozen("zoo.py:Batched")  # batches of 4, 6 s
    known = ["--image", "registry/batched:1", "--url", "s3://bucket/batched"]
    run = zerowake("deploy", "knative", snapshot, "--dry-run", "--out", tmp_path, *known)
    assert run.returncode == 0, run.stderr
    assert "helm upgrade --install batched" in run.stderr
    values = yaml.safe_load((tmp_path / "values.yaml").read_text())
    digest = json.loads(zerowake("inspect", snapshot, "--json").stdout)["digest"]
    assert values["kind"] == "knative" and values["function"] == "batched"
    assert values["trust"] == [digest]
    assert (values["concurrency"], values["timeoutSeconds"]) == (8, 11)
    assert (tmp_path / "chart" / "Chart.yaml").is_file()
    printed = zerowake("deploy", "lambda", snapshot, "--dry-run", "--memory-mb", "4000")
    assert printed.returncode == 0 and "MemorySize: 4000" in printed.stdout
    assert "BUCKET" not in printed.stdout  # sam deploy asks for what is not known


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["lambda"], ["does not talk to it", "--dry-run", "sam deploy --guided"]),
        (["cloud-run", "--dry-run"], ["--image", "--url"]),
        (["lambda", "--dry-run", "--image", 'x"\ny'], ["--image is", "wanted letters"]),
        (["cloud-run", "--dry-run", "--url", "s3:/b/x", "--image", "i"], ["'s3:/b/x'", "a URL"]),
        (["knative", "--dry-run", "--url", "b/x", "--image", "i"], ["'b/x'", "absolute path"]),
        (["lambda", "--dry-run", "--gpu"], ["no tensors"]),
    ],
)
def test_the_command_says_what_it_does_not_do(
    frozen: Callable[[str], Path], arguments: list[str], said: list[str]
) -> None:
    platform, *options = arguments
    run = zerowake("deploy", platform, frozen("zoo.py:Batched"), *options)
    assert run.returncode == 1 and run.stdout == ""
    for part in said:
        assert part in run.stderr


def test_a_strangers_code_is_not_sent_anywhere_unasked(
    frozen: Callable[[str], Path], tmp_path: Path
) -> None:
    environ = {**os.environ, "ZEROWAKE_STATE": str(tmp_path / "state")}
    snapshot = frozen("zoo.py:Batched")
    digest = json.loads(zerowake("inspect", snapshot, "--json").stdout)["digest"]
    run = zerowake("deploy", "lambda", snapshot, "--dry-run", env=environ)
    assert run.returncode == 1 and f"--trust {digest}" in run.stderr
    run = zerowake("deploy", "lambda", snapshot, "--dry-run", "--trust", digest, env=environ)
    assert run.returncode == 0 and f'Default: "{digest}"' in run.stdout
