"""A real S3 server behind a network that misbehaves, and a snapshot to send through it."""

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import S3, seaweedfs
from support import zerowake


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


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with 40 MB of weights: several parts."""
    folder = tmp_path_factory.mktemp("big")
    (folder / "big.py").write_text(
        textwrap.dedent(
            """
            from zerowake import function

            @function(examples=[1])
            class Big:
                def load(self) -> None:
                    import torch

                    self.table = torch.arange(10_000_000, dtype=torch.float32)

                def predict(self, index: int) -> float:
                    return float(self.table[index])
            """
        )
    )
    run = zerowake("freeze", folder / "big.py:Big", "--out", folder / "out", "--no-compile")
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.splitlines()[-1])
