"""Containers of platforms, started once for all tests that only call them; a real S3 server."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from platforms import PULL, PUSH, Platform, Process, PullPlatform, PushPlatform
from stores import S3, seaweedfs


@pytest.fixture(scope="module", params=PUSH, ids=lambda platform: platform.name)
def platform(request: pytest.FixtureRequest) -> PushPlatform:
    found: PushPlatform = request.param
    return found


@pytest.fixture(scope="module", params=[*PUSH, *PULL], ids=lambda platform: platform.name)
def anywhere(request: pytest.FixtureRequest) -> Platform:
    found: Platform = request.param
    return found


@pytest.fixture(scope="module", params=PULL, ids=lambda platform: platform.name)
def pull(request: pytest.FixtureRequest) -> PullPlatform:
    found: PullPlatform = request.param
    return found


@pytest.fixture(scope="session")
def containers() -> Iterator[list[Process]]:
    """What is still running at the end is ended."""
    running: list[Process] = []
    yield running
    for container in running:
        container.callers.shutdown(wait=False, cancel_futures=True)
        container.stop(signal.SIGKILL)


Start = Callable[..., Any]  # a container of the platform's kind


@pytest.fixture
def start(frozen: Callable[[str], Path], containers: list[Process]) -> Start:
    """``start(platform, "zoo.py:Add", "--drain-s", "1", NAME="value")``: a container of its own."""

    def begin(platform: Platform, target: str, *options: str, **environ: str) -> Any:
        container = platform.start(frozen(target), *options, **environ)
        containers.append(container)
        return container

    return begin


@pytest.fixture(scope="session")
def on(frozen: Callable[[str], Path], containers: list[Process]) -> Start:
    """``on(platform, "zoo.py:Add")``: a ready one, shared by the tests of its platform."""
    made: dict[tuple[str, str], Any] = {}

    def ready(platform: Platform, target: str) -> Any:
        key = platform.name, target
        if key not in made:
            for old in [other for other in made if other[0] != platform.name]:
                made.pop(old).stop(signal.SIGKILL)
            made[key] = platform.start(frozen(target)).until_ready()
            containers.append(made[key])
        return made[key]

    return ready


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with an environment in which boto3 finds it, through the proxy."""
    s3_server.proxy.reset()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server.proxy.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    return s3_server
