"""Objects that events tell of (S3, Google Cloud Storage), and their content.

``of_*`` read what the events say, purely. ``Objects`` fetches the content, for functions that take
bytes; all others get what the event says, and nothing is fetched. Knows no platform.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from zerowake.adapters.stores import open_store
from zerowake.runtime.errors import BadRequest, ConfigError, InvocationError, TooLarge
from zerowake.snapshot.errors import StoreChanged, StoreError

if TYPE_CHECKING:
    from zerowake.snapshot.storage import Found, Store

ALLOWED = "ZEROWAKE_OBJECTS"
AT_ONCE = 4  # objects being fetched; large ones each in parts, side by side
GCS_TYPE = "google.cloud.storage.object.v1."
S3_TYPE = "com.amazonaws.s3."  # github.com/cloudevents/spec: cloudevents/adapters/aws-s3.md
S3_SOURCE = "aws.s3"  # EventBridge
_ENDS = ("ObjectRemoved:", "LifecycleExpiration:")


class ObjectNotAllowed(InvocationError):
    status, code = 403, "object_not_allowed"


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object at the version that an event tells of. What the event does not tell is empty.

    store: URL of the bucket. key: as the store spells it. version: S3's ETag in quotes, or the
    generation. kept: the name of a version that S3 keeps (VersionId). nbytes: -1 when not told.
    removed: it is the end of the object that the event tells of.
    """

    store: str
    key: str
    version: str = ""
    kept: str = ""
    nbytes: int = -1
    removed: bool = False

    @property
    def url(self) -> str:
        return f"{self.store}/{self.key}"


class Objects:
    """Fetches content. limit_nbytes: of one object.

    allowed: URLs below which objects are fetched; None for all, where whoever sends events is
    trusted to name any that this machine's credentials may read.
    """

    def __init__(
        self,
        limit_nbytes: int,
        allowed: tuple[str, ...] | None,
        open_: "Callable[[str], Store]" = open_store,
    ) -> None:
        self._limit_nbytes = limit_nbytes
        self._allowed = allowed
        self._open = lru_cache(16)(open_)
        self._room = asyncio.Semaphore(AT_ONCE)

    async def content(self, ref: ObjectRef) -> bytes:
        """The bytes of the object. Cancelling it ends the fetch before its next request.

        Raises BadRequest for one that was removed, ObjectNotAllowed, TooLarge, and StoreError:
        NotInStore, StoreDenied, StoreChanged where it is another version by now, StoreInterrupted.
        """
        if ref.removed:
            raise BadRequest(
                f"the event tells that {ref.url} was removed, and the function takes content; have "
                "only the creation of objects notified"
            )
        if self._allowed is not None and not any(_below(ref.url, each) for each in self._allowed):
            raise ObjectNotAllowed(
                f"{ref.url} is not fetched: name its bucket in {ALLOWED}, such as {ref.store}"
            )
        left = threading.Event()

        def pause(seconds: float) -> None:
            if left.wait(seconds):
                raise StoreError(f"{ref.url}: nobody waits for it any more")

        async with self._room:
            try:
                return await asyncio.to_thread(self._fetch, ref, pause)
            except StoreChanged as error:
                raise StoreChanged(
                    f"{ref.url} is not as the event tells of it any more: it was replaced, of which "
                    "another event tells; a bucket with versioning keeps the earlier ones"
                ) from error
            finally:
                left.set()

    def _fetch(self, ref: ObjectRef, pause: Callable[[float], None]) -> bytes:
        """Runs in a thread."""
        from zerowake.snapshot.storage import Found, again, read_version  # 2 ms of a start

        store = self._open(ref.store)

        def look() -> "Found":
            found = again(lambda: store.stat(ref.key), pause)
            if ref.version and not ref.kept and found.version != ref.version:
                raise StoreChanged(ref.url)
            return found

        pins = ref.store.startswith("s3://")  # a read names the version, which spares looking first
        if pins and ref.version and ref.nbytes >= 0:
            found = Found(ref.nbytes, ref.version, kept=ref.kept)
        else:
            found = look()
            if ref.kept:
                nbytes = ref.nbytes if ref.nbytes >= 0 else found.nbytes
                found = replace(found, nbytes=nbytes, version=ref.version, kept=ref.kept)
        if found.nbytes > self._limit_nbytes:
            raise TooLarge(
                f"{ref.url} has {found.nbytes} bytes, and a call takes {self._limit_nbytes}; take the "
                "event (JSON) instead of bytes, and read what is needed of the object"
            )
        data = read_version(store, ref.key, found, pause)
        if not pins and look().version != found.version:
            raise StoreChanged(ref.url)
        return data


def allowed(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """What ZEROWAKE_OBJECTS names, URLs apart by spaces or commas; None when it is not set.

    Raises ConfigError for what can be no object's URL: nothing would be fetched for it.
    """
    text = environ.get(ALLOWED)
    if text is None:
        return None
    urls = tuple(text.replace(",", " ").split())
    if odd := [url for url in urls if not url.startswith(("s3://", "gs://"))]:
        raise ConfigError(
            f"{ALLOWED} names {odd[0]!r:.80}; wanted URLs of buckets or of folders in them, such as "
            "s3://uploads gs://photos/in"
        )
    return urls


def _below(url: str, prefix: str) -> bool:
    return url.startswith(prefix if prefix.endswith("/") else f"{prefix}/")


# ---------------------------------------------------------------------------- what events say


def of_s3_record(record: Mapping[str, Any]) -> ObjectRef | None:
    """The object of an S3 notification's record; None where it tells of none.

    Its key is URL-encoded, with + for a space.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
    """
    match record.get("s3"):
        case {"bucket": {"name": str(bucket)}, "object": {"key": str(key), **told}}:
            removed = str(record.get("eventName")).removeprefix("s3:").startswith(_ENDS)
            return _s3(bucket, unquote_plus(key), told, "eTag", "versionId", removed)
    return None


def of_s3_detail(kind: str, detail: Any) -> ObjectRef | None:
    """The object of an EventBridge event of S3: its detail-type and its detail, whose key is plain.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
    """
    match detail:
        case {"bucket": {"name": str(bucket)}, "object": {"key": str(key), **told}}:
            return _s3(bucket, key, told, "etag", "version-id", kind == "Object Deleted")
    return None


def of_cloud_event(type_: str, source: str, data: Any) -> ObjectRef | None:
    """The object that a CloudEvent's data tells of: S3's record, EventBridge's event, or GCS's."""
    if not isinstance(data, Mapping):
        return None
    if type_.startswith(GCS_TYPE):
        removed = type_ == f"{GCS_TYPE}deleted"
        return _gcs(data.get("bucket"), data.get("name"), data.get("generation"), removed)
    if type_.startswith(S3_TYPE) or data.get("eventSource") == "aws:s3":
        return of_s3_record(data)
    if data.get("source") == S3_SOURCE:
        return of_s3_detail(str(data.get("detail-type")), data.get("detail"))
    if source.startswith(S3_SOURCE):
        return of_s3_detail(type_, data)
    return None


def of_gcs_message(attributes: Any) -> ObjectRef | None:
    """The object that a Pub/Sub notification of Cloud Storage tells of, by its attributes.

    https://cloud.google.com/storage/docs/pubsub-notifications#attributes
    """
    match attributes:
        case {"eventType": str(kind), "bucketId": str(bucket), "objectId": str(key)}:
            if kind.startswith("OBJECT_"):
                generation = attributes.get("objectGeneration")
                return _gcs(bucket, key, generation, kind == "OBJECT_DELETE")
    return None


def _s3(
    bucket: str, key: str, told: Mapping[Any, Any], etag: str, version: str, removed: bool
) -> ObjectRef:
    size, tag, kept = told.get("size"), told.get(etag), told.get(version)
    return ObjectRef(
        store=f"s3://{bucket}",
        key=key,
        version='"{}"'.format(tag.strip('"')) if isinstance(tag, str) and tag else "",
        kept=kept if isinstance(kept, str) else "",
        nbytes=size if type(size) is int and size >= 0 else -1,
        removed=removed,
    )


def _gcs(bucket: Any, key: Any, generation: Any, removed: bool) -> ObjectRef | None:
    if not isinstance(bucket, str) or not isinstance(key, str):
        return None
    version = "" if generation is None else str(generation)
    return ObjectRef(f"gs://{bucket}", key, version, removed=removed)
