"""What Lambda's events are, and which work is in them.

https://docs.aws.amazon.com/lambda/latest/dg/lambda-services.html. ``read`` tells an HTTP request from
a batch of records from a payload of a direct invocation; the work in records goes to the function
item by item, so that a batch of a queue becomes batches of the model. Pure: values in, values out.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from zerowake.adapters.calls import decode_base64
from zerowake.adapters.objects import S3_SOURCE, ObjectRef, of_s3_detail, of_s3_record
from zerowake.runtime.errors import BadRequest
from zerowake.runtime.jsontext import encode_json, parse_json


@dataclass(frozen=True, slots=True)
class Item:
    """One record. body: what the function is called with. problem: why it cannot be, if so.

    id: what names it in a partial batch response, "" where its source has none. group: records of
    one group go one after the other, and none after one that has failed. shard: of which nothing is
    begun after one that has failed, as the source sends all of it from there on again. object: what
    the record tells of, with whose content a function that takes bytes is called.
    """

    id: str
    body: bytes
    group: str = ""
    problem: str = ""
    shard: str = ""
    object: ObjectRef | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one event source.

    partial: whether the source takes the ids of those that failed. lowest: it goes on from the
    lowest of them, so that is the only one told. results: whether the source passes results on, to
    a destination of asynchronous invocations.
    """

    source: str
    items: tuple[Item, ...]
    partial: bool = False
    lowest: bool = False
    results: bool = False


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request behind a function URL, an API gateway or a load balancer.

    query: as in the URL. headers: lower-case names. shape: how the reply is to look ("v1", "v2",
    "alb", "alb-multi"). problem: why it cannot be read, if so.
    """

    shape: str
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    client: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Direct:
    """The event is the function's input itself."""


def read(body: bytes) -> HttpRequest | Batch | Direct:
    """What an event asks for. Raises BadRequest for records that are malformed as a whole."""
    try:
        event = parse_json(body)
    except BadRequest:
        return Direct()
    if not isinstance(event, dict):
        return Direct()
    context = event.get("requestContext")
    if isinstance(context, dict):
        if event.get("version") == "2.0" and isinstance(context.get("http"), dict):
            return _http_v2(event, context)
        if "httpMethod" in event:
            return _http_v1(event, context)
    records = event.get("Records")
    if isinstance(records, list):
        sources = {_source(record) for record in records}
        if not sources.isdisjoint(_SOURCES):
            return _records(records, sources)
    if (
        isinstance(event.get("records"), dict)
        and "kafka" in str(event.get("eventSource", "")).lower()
    ):
        return _kafka(event["records"])
    if "detail-type" in event and "source" in event and "detail" in event:
        found = None
        if event["source"] == S3_SOURCE:
            found = of_s3_detail(str(event["detail-type"]), event["detail"])
        item = Item(str(event.get("id", "")), encode_json(event["detail"]), object=found)
        return Batch("eventbridge", (item,), results=True)
    return Direct()


def response(batch: Batch, failed: list[str]) -> dict[str, Any]:
    """The partial batch response of a source that takes one. failed: ids, in the batch's order."""
    told = failed[:1] if batch.lowest else failed
    return {"batchItemFailures": [{"itemIdentifier": id_} for id_ in told]}


# ---------------------------------------------------------------------------- HTTP


def _http_v2(event: dict[str, Any], context: dict[str, Any]) -> HttpRequest:
    http = context["http"]
    headers = _headers(event)
    if isinstance(cookies := event.get("cookies"), list) and cookies:
        headers.append(("cookie", "; ".join(map(str, cookies))))
    path = str(event.get("rawPath") or http.get("path") or "/")
    stage = context.get("stage")
    if isinstance(stage, str) and stage != "$default" and f"{path}/".startswith(f"/{stage}/"):
        path = path[len(stage) + 1 :] or "/"
    return HttpRequest(
        shape="v2",
        method=str(http.get("method", "GET")),
        path=path,
        query=str(event.get("rawQueryString") or ""),
        headers=tuple(headers),
        client=str(http.get("sourceIp", "")),
        **_body(event),
    )


def _http_v1(event: dict[str, Any], context: dict[str, Any]) -> HttpRequest:
    from urllib.parse import urlencode

    is_alb = isinstance(context.get("elb"), dict)
    pairs = _pairs(event, "multiValueQueryStringParameters", "queryStringParameters")
    if is_alb:  # its values are as they stand in the URL
        shape = "alb-multi" if "multiValueHeaders" in event else "alb"
        query = "&".join(f"{name}={value}" for name, value in pairs)
    else:
        shape, query = "v1", urlencode(pairs)
    identity = context.get("identity")
    return HttpRequest(
        shape=shape,
        method=str(event["httpMethod"]),
        path=str(event.get("path") or "/"),
        query=query,
        headers=tuple(_headers(event)),
        client=str(identity.get("sourceIp", "")) if isinstance(identity, dict) else "",
        **_body(event),
    )


def _headers(event: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = _pairs(event, "multiValueHeaders", "headers")
    return [(name.lower(), value) for name, value in pairs]


def _pairs(event: dict[str, Any], many: str, one: str) -> list[tuple[str, str]]:
    """Names and values from the member with several values a name, or else with one."""
    found: list[tuple[str, str]] = []
    if isinstance(event.get(many), dict):
        for name, values in event[many].items():
            each = values if isinstance(values, list) else [values]
            found += [(str(name), str(value)) for value in each if value is not None]
    elif isinstance(event.get(one), dict):
        found = [(str(name), str(value)) for name, value in event[one].items() if value is not None]
    return found


def _body(event: dict[str, Any]) -> dict[str, Any]:
    """The members ``body`` and ``problem`` of a request."""
    body = event.get("body")
    if body is None:
        return {"body": b""}
    try:
        return {
            "body": decode_base64(body) if event.get("isBase64Encoded") is True else _text(body)
        }
    except BadRequest as error:
        return {"body": b"", "problem": str(error)}


# ---------------------------------------------------------------------------- records


def _records(records: list[Any], sources: set[str]) -> Batch:
    if len(sources) > 1:
        raise BadRequest(f"the event has records of {', '.join(sorted(sources))}")
    (source,) = sources
    read_one, partial, lowest = _SOURCES[source]
    items = tuple(_item(read_one, record) for record in records)
    if partial and not all(item.id for item in items):
        # Its failure could not be told, and a null id would have the whole batch come again anyway.
        raise BadRequest(f"the event has a record of {source} without an id")
    return Batch(source, items, partial, lowest, results=not partial)


def _source(record: Any) -> str:
    if not isinstance(record, dict):
        return type(record).__name__
    return str(record.get("eventSource") or record.get("EventSource") or "no source")


def _item(read_one: "Callable[[dict[str, Any]], Item]", record: dict[str, Any]) -> Item:
    """An item of a record, or one that has failed already: it must not take the others along."""
    try:
        return read_one(record)
    except BadRequest as error:
        return Item(_id(record), b"", problem=str(error))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        return Item(_id(record), b"", problem=f"the record is malformed: {error!r:.200}")


def _id(record: Any) -> str:
    """What a record is called in a partial batch response."""
    if not isinstance(record, Mapping):
        return ""
    id_ = record.get("messageId")
    for service in ("kinesis", "dynamodb"):
        if isinstance(inner := record.get(service), dict):
            id_ = inner.get("sequenceNumber", inner.get("SequenceNumber"))
    return id_ if isinstance(id_, str) else ""


def _sqs(record: dict[str, Any]) -> Item:
    is_fifo = str(record.get("eventSourceARN", "")).endswith(".fifo")
    group = str(record.get("attributes", {}).get("MessageGroupId", "")) if is_fifo else ""
    return Item(_id(record), _text(record["body"]), group)


def _sns(record: dict[str, Any]) -> Item:
    return Item(str(record["Sns"].get("MessageId", "")), _text(record["Sns"]["Message"]))


def _s3(record: dict[str, Any]) -> Item:
    s3 = record["s3"]
    name = f"{s3['bucket']['name']}/{s3['object']['key']}"  # the record itself says what happened
    return Item(name, encode_json(record), object=of_s3_record(record))


def _kinesis(record: dict[str, Any]) -> Item:
    """Records of one partition key are in order; an eventID is ``shardId-...:sequence number``."""
    shard = str(record.get("eventID", "")).rpartition(":")[0] or _ARN_MISSING
    key = record["kinesis"].get("partitionKey")
    group = "" if key is None else f"{shard}:{key}"
    return Item(_id(record), decode_base64(record["kinesis"]["data"]), group, shard=shard)


def _dynamodb(record: dict[str, Any]) -> Item:
    """Changes of one item of the table are in order; an event is of one shard, which it does not name."""
    images = {k: v for k, v in record["dynamodb"].items() if k in _IMAGES}
    change = {k: {name: _plain(v) for name, v in image.items()} for k, image in images.items()}
    shard = str(record.get("eventSourceARN", "")) or _ARN_MISSING
    group = shard + encode_json(images["Keys"]).decode() if "Keys" in images else ""
    body = encode_json({"eventName": record.get("eventName"), **change})
    return Item(_id(record), body, group, shard=shard)


_ARN_MISSING = "?"  # an event is of one shard of one stream anyway
_IMAGES = ("Keys", "NewImage", "OldImage")

# source -> how a record is read, whether it takes partial batch responses, whether only the lowest
_SOURCES: dict[str, tuple[Callable[[dict[str, Any]], Item], bool, bool]] = {
    "aws:sqs": (_sqs, True, False),
    "aws:sns": (_sns, False, False),
    "aws:s3": (_s3, False, False),
    "aws:kinesis": (_kinesis, True, True),
    "aws:dynamodb": (_dynamodb, True, True),
}


def _kafka(partitions: dict[str, Any]) -> Batch:
    if not all(isinstance(records, list) for records in partitions.values()):
        raise BadRequest("the event has a partition that is no list of records")
    named = [(name, record) for name, records in partitions.items() for record in records]
    return Batch(
        "aws:kafka", tuple(_item(partial(_kafka_record, name), each) for name, each in named)
    )


def _kafka_record(partition: str, record: dict[str, Any]) -> Item:
    """Records of one key are in order."""
    value = record.get("value")  # none says that the key was deleted
    body = b"null" if value is None else decode_base64(value)
    key = record.get("key")
    group = "" if key is None else f"{partition}:{key}"
    return Item(f"{partition}-{record.get('offset')}", body, group, shard=partition)


def _text(text: Any) -> bytes:
    if not isinstance(text, str):
        raise BadRequest(f"the body is a {type(text).__name__}; wanted a string")
    return text.encode()


def _plain(value: Any) -> Any:
    """DynamoDB's typed JSON ({"S": "a"}) as plain JSON; its binary values stay base64.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.LowLevelAPI.html
    """
    match value:
        case {"S": inner} | {"B": inner} | {"BOOL": inner} | {"SS": inner} | {"BS": inner}:
            return inner
        case {"N": inner}:
            return _number(inner)
        case {"NS": [*inner]}:
            return [_number(each) for each in inner]
        case {"NULL": _}:
            return None
        case {"L": [*inner]}:
            return [_plain(each) for each in inner]
        case {"M": dict(inner)}:
            return {name: _plain(each) for name, each in inner.items()}
    raise BadRequest(f"{value!r:.80} stands where DynamoDB has a typed value")


def _number(text: Any) -> int | float:
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            return int(text)
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(text)):
                return number
    raise BadRequest(f"{text!r:.80} stands where DynamoDB has a number")
