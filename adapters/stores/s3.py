"""Snapshots in S3 and in what speaks its protocol, through boto3.

Credentials, region and endpoint are found as boto3 finds them (AWS_PROFILE, AWS_ENDPOINT_URL_S3,
roles). Objects are read at the ETag that was seen first.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as Unreachable,
)

from zerowake.snapshot.errors import (
    NoCredentials,
    NotInStore,
    StoreChanged,
    StoreDenied,
    StoreError,
    StoreInterrupted,
)
from zerowake.snapshot.storage import CHUNK_NBYTES, MAX_PART_NBYTES, THREADS, Found

# Not reached, reset or timed out; ended early.
_BROKEN = (Unreachable, HTTPClientError, IncompleteReadError)
_BUSY = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException"})


class S3Store:
    """The objects of ``bucket`` whose keys begin with ``prefix``; one client for all threads.

    uploader: makes the client for uploads, when one is made.
    """

    read_only = ""

    def __init__(self, bucket: str, prefix: str, client: Any, uploader: Callable[[], Any]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._client = client
        self._uploader = functools.cache(uploader)

    @classmethod
    def open(cls, url: str) -> "S3Store":
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError(f"{url!r} names no bucket; wanted s3://bucket/prefix")
        prefix = prefix.strip("/")
        try:
            # How often a read is tried is decided in ``storage``; the parts of an upload are boto3's.
            client = _client(tries=1)
        except (BotoCoreError, ValueError) as error:  # no such profile; an endpoint that is no URL
            raise StoreError(
                f"{url}: {error}; check boto3's settings (AWS_PROFILE, AWS_ENDPOINT_URL_S3, ...)"
            ) from error
        return cls(bucket, f"{prefix}/" if prefix else "", client, lambda: _client(tries=5))

    def stat(self, name: str) -> Found:
        with self._errors(name):
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
        return Found(int(head["ContentLength"]), str(head["ETag"]))

    def read(self, name: str, found: Found, start: int, nbytes: int) -> Iterator[bytes]:
        with self._errors(name):
            body = self._client.get_object(
                Bucket=self._bucket,
                Key=self._prefix + name,
                Range=f"bytes={start}-{start + nbytes - 1}",
                **({"IfMatch": found.version} if found.version else {}),
                **({"VersionId": found.kept} if found.kept else {}),
            )["Body"]
            with body:
                yield from body.iter_chunks(CHUNK_NBYTES)

    def write(self, name: str, source: Path) -> None:
        transfer = TransferConfig(
            multipart_threshold=MAX_PART_NBYTES,
            multipart_chunksize=MAX_PART_NBYTES,
            max_concurrency=THREADS,
        )
        with self._errors(name), open(source, "rb") as file:
            self._uploader().upload_fileobj(
                file, self._bucket, self._prefix + name, Config=transfer
            )

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """boto3's errors as ours."""
        url = f"s3://{self._bucket}/{self._prefix}{name}"
        try:
            yield
        except ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(error.response.get("Error", {}).get("Code", ""))
            if status == 404:
                raise NotInStore(f"{url} is not there ({code})") from error
            if status in (401, 403):
                raise StoreDenied(
                    f"{url}: access denied ({code}); check the credentials that boto3 finds and "
                    "what they may do (s3:GetObject, for uploads s3:PutObject)"
                ) from error
            if status in (412, 416):
                raise StoreChanged(f"{url} was replaced while it was read; start again") from error
            if status >= 500 or status in (408, 429) or code in _BUSY:
                raise StoreInterrupted(f"{url}: {error}") from error
            raise StoreError(f"{url}: {error}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise NoCredentials(
                f"{url}: {error}; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or give this machine a role"
            ) from error
        except _BROKEN as error:
            raise StoreInterrupted(f"{url}: {error}") from error
        except BotoCoreError as error:
            raise StoreError(f"{url}: {error}") from error


def _client(tries: int) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=THREADS,
        tcp_keepalive=True,
        connect_timeout=10,
        read_timeout=30,
        # Snapshots have SHA-256s of their own, and not every S3 knows the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.Session().client("s3", config=config)  # the default session keeps credentials
