"""``zerowake.adapters.stores``: which store a URL means, and what is imported for it."""

import os
import sys
from pathlib import Path

import pytest
from support import run_python, zerowake

from zerowake.adapters.stores import open_store
from zerowake.snapshot.errors import StoreError


def test_nothing_is_imported_before_a_url_is_seen() -> None:
    run_python(
        """
        import sys
        import zerowake.__main__
        from zerowake.adapters.stores import open_store

        heavy = {"boto3", "botocore", "fsspec", "torch", "zerowake.snapshot.storage"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        open_store("https://host/snapshot")
        assert not {"boto3", "botocore", "fsspec"} & sys.modules.keys()
        """
    )


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("s3://bucket/name", "boto3", "s3"), ("gs://bucket/name", "fsspec", "remote")],
)
def test_a_package_that_is_missing(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(("zerowake.adapters.stores.", package)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        StoreError, match=rf"needs the package {package}: pip install 'zerowake\[{extra}\]'"
    ):
        open_store(url)


def test_a_file_system_that_is_missing_or_unknown() -> None:
    with pytest.raises(StoreError, match=r"Install adlfs.*pip install"):
        open_store("az://container/name")  # adlfs is no dependency of ours
    with pytest.raises(StoreError, match="nosuch"):
        open_store("nosuch://x/y")


def test_urls_that_name_nothing() -> None:
    with pytest.raises(StoreError, match="names no bucket"):
        open_store("s3:///name")
    with pytest.raises(StoreError, match="has a query") as raised:
        open_store("https://host/name?signature=secret")
    assert "secret" not in str(raised.value)


def test_a_store_that_cannot_be_opened_is_told_before_anything_is_frozen() -> None:
    run = zerowake("freeze", "nowhere.py:Nothing", "--out", "nosuch://x/y")
    assert run.returncode == 1 and "nosuch" in run.stderr and "nowhere" not in run.stderr


def test_credentials_that_are_missing_are_told_before_anything_is_frozen(tmp_path: Path) -> None:
    environ = {name: os.environ[name] for name in os.environ if not name.startswith("AWS_")}
    environ |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    run = zerowake("freeze", "nowhere.py:Nothing", "--out", "s3://bucket/x", env=environ)
    assert run.returncode == 1 and "AWS_ACCESS_KEY_ID" in run.stderr
    assert "nowhere" not in run.stderr and len(run.stderr.splitlines()) == 1


def test_a_url_that_is_none() -> None:
    run = zerowake("inspect", "s3://bucket/name#sha256:123")
    assert run.returncode == 1 and "is no address of a snapshot" in run.stderr
