"""``zerowake.adapters.aws.events``: what is read out of each kind of event, and out of broken ones."""

import asyncio
import base64
import copy
import json
import logging
import random
import subprocess
import textwrap
from typing import Any

import parts
import pytest
from fake_functions import FakeFunctions
from samples import ENCODED, FIFO, FUNCTION_URL, KAFKA, WORK, all_kinds, generated

from zerowake.adapters.aws import events, runtime_api
from zerowake.adapters.aws.events import Batch, Direct, HttpRequest, Item
from zerowake.adapters.aws.invocations import Invocations
from zerowake.adapters.objects import ObjectRef, Objects
from zerowake.runtime.errors import BadRequest
from zerowake.runtime.gateway.app import create_app
from zerowake.runtime.gateway.caller import Caller
from zerowake.runtime.invocation import Invocation
from zerowake.runtime.metrics import Metrics


def read(event: object) -> HttpRequest | Batch | Direct:
    return events.read(event if isinstance(event, bytes) else json.dumps(event).encode())


def request(event: object) -> HttpRequest:
    found = read(event)
    assert isinstance(found, HttpRequest)
    return found


def batch(event: object) -> Batch:
    found = read(event)
    assert isinstance(found, Batch)
    return found


# ---------------------------------------------------------------------------- each kind


def test_what_else_there_is_goes_to_the_function_as_it_is() -> None:
    for payload in (
        b"",
        b"\xff",
        b"1",
        b'{"text": "hi"}',
        b'[{"Records": []}]',
        b'{"Records": []}',
    ):
        assert read(payload) == Direct()
    for kind in ("ses/SesEmailReceiving", "codecommit/CodeCommit", "cloudwatch/CloudwatchLogs"):
        assert read(generated(kind)) == Direct()
    for kind in ("kinesis/KinesisFirehose", "s3/S3BatchInvocation", "lex/LexBookCar"):
        assert read(generated(kind)) == Direct()
    chat = {"requestContext": {"connectionId": "c", "eventType": "CONNECT"}}
    assert read(chat) == Direct()


def test_a_function_url() -> None:
    found = request(FUNCTION_URL)
    assert (found.shape, found.method, found.path) == ("v2", "POST", "/my/path")
    assert (found.query, found.client) == ("a=1&a=2&b=%20", "192.0.2.1")
    assert found.body == WORK.encode()
    assert ("cookie", "one=1; two=2") in found.headers
    assert ("content-type", "application/json") in found.headers


def test_an_http_api() -> None:
    kinds = {"body": ENCODED, "method": "PUT"}
    found = request(generated("apigateway/HttpApi", path="way", stage="$default", **kinds))
    assert (found.shape, found.method, found.path, found.body) == (
        "v2",
        "PUT",
        "/way",
        WORK.encode(),
    )
    assert ("header2", "value1,value2") in found.headers
    for path, inside in (("prod/way", "/way"), ("prod", "/"), ("product", "/product")):
        event = generated("apigateway/HttpApi", path=path, stage="prod", **kinds)
        assert request(event).path == inside


def test_a_rest_api() -> None:
    event = generated("apigateway/AwsProxy", body=ENCODED, method="POST", path="a b")
    event["multiValueQueryStringParameters"] = {"q": ["1 2", "&"], "r": ["ä"]}
    event["multiValueHeaders"]["X-Twice"] = ["1", "2"]
    found = request(event)
    assert (found.shape, found.method, found.path) == ("v1", "POST", "/a b")
    assert found.query == "q=1+2&q=%26&r=%C3%A4"
    assert [value for name, value in found.headers if name == "x-twice"] == ["1", "2"]
    assert found.body == WORK.encode()


def test_a_load_balancer() -> None:
    event = generated("alb/ALBRequest", body=ENCODED, method="GET", path="p")
    event["queryStringParameters"] = {"q": "1%202"}  # not decoded, unlike an API gateway's
    found = request(event)
    assert (found.shape, found.method, found.query) == ("alb", "GET", "q=1%202")
    event["multiValueHeaders"] = {"accept": ["a", "b"]}
    event["multiValueQueryStringParameters"] = {"q": ["1", "2"]}
    found = request(event)
    assert (found.shape, found.query) == ("alb-multi", "q=1&q=2")
    assert found.headers == (("accept", "a"), ("accept", "b"))


def test_bodies() -> None:
    assert request({**FUNCTION_URL, "body": None}).body == b""
    assert request({**FUNCTION_URL, "body": "é"}).body == "é".encode()
    for body, is_encoded, why in (
        ("%%%", True, "base64"),
        (5, False, "a int"),
        ({}, True, "base64"),
    ):
        found = request({**FUNCTION_URL, "body": body, "isBase64Encoded": is_encoded})
        assert (found.body, why in found.problem) == (b"", True)


def test_sqs() -> None:
    found = batch(generated("sqs/Sqs", body=WORK))
    assert (found.source, found.partial, found.lowest) == ("aws:sqs", True, False)
    assert found.items == (Item("19dd0b57-b21e-4ac1-bd88-01bbb068cb78", WORK.encode()),)
    assert [(item.id, item.group) for item in batch(FIFO).items] == [
        ("m0", "a"),
        ("m1", "b"),
        ("m2", "a"),
        ("m3", "b"),
    ]
    told = events.response(found, ["m1", "m2"])
    assert told == {"batchItemFailures": [{"itemIdentifier": "m1"}, {"itemIdentifier": "m2"}]}


def test_sns_and_s3() -> None:
    found = batch(generated("sns/Sns", message=WORK))
    assert (found.partial, found.items[0].body) == (False, WORK.encode())
    event = generated("s3/S3Put", bucket="shelf", key="a.png")
    found = batch(event)
    assert (found.partial, found.items[0].id) == (False, "shelf/a.png")
    assert json.loads(found.items[0].body) == event["Records"][0]
    etag = '"0123456789abcdef0123456789abcdef"'
    assert found.items[0].object == ObjectRef("s3://shelf", "a.png", etag, nbytes=1024)


def test_kinesis_and_dynamodb() -> None:
    found = batch(generated("kinesis/Kinesis", data=ENCODED, sequence="4959"))
    assert (found.partial, found.lowest) == (True, True)
    (item,) = found.items
    assert (item.id, item.body) == ("4959", WORK.encode())
    assert item.shard in item.group  # ...:partition key
    assert events.response(found, ["1", "2"]) == {"batchItemFailures": [{"itemIdentifier": "1"}]}
    assert events.response(found, []) == {"batchItemFailures": []}

    found = batch(generated("dynamodb/DynamoDBUpdate"))
    assert (found.partial, found.lowest) == (True, True)
    assert found.items[1].id == "4421584500000000017450439092"
    assert json.loads(found.items[1].body) == {
        "eventName": "MODIFY",
        "Keys": {"Id": 101},
        "NewImage": {"Message": "This item has changed", "Id": 101},
        "OldImage": {"Message": "New item!", "Id": 101},
    }


def test_dynamodb_values() -> None:
    def plain(value: object) -> Any:
        record = {"dynamodb": {"SequenceNumber": "1", "Keys": {"v": value}}}
        (item,) = batch({"Records": [{"eventSource": "aws:dynamodb", **record}]}).items
        return item.problem or json.loads(item.body)["Keys"]["v"]

    assert plain({"N": "1e3"}) == 1000.0
    assert (
        plain({"N": "12345678901234567890123456789012345678"})
        == 12345678901234567890123456789012345678
    )
    assert plain({"M": {"a": {"L": [{"BOOL": True}, {"NULL": True}, {"NS": ["1", "2.5"]}]}}}) == {
        "a": [True, None, [1, 2.5]]
    }
    assert plain({"B": "AAE="}) == "AAE="
    for wrong in ({"N": "one"}, {"N": 1.5}, {"N": "1e999"}, {"X": 1}, "text", None, {"L": "no"}):
        assert "stands where DynamoDB has" in plain(wrong)
    deep: Any = {"S": "x"}
    for _ in range(400):
        deep = {"M": {"a": deep}}
    assert isinstance(plain(deep), dict | str)


def test_eventbridge_and_msk() -> None:
    event = generated("cloudwatch/ScheduledEvent")
    found = batch({**event, "detail": {"a": 1}})
    assert (found.source, found.partial, found.items[0].body) == ("eventbridge", False, b'{"a":1}')
    found = batch(KAFKA)
    assert (found.source, found.partial) == ("aws:kafka", False)
    (item,) = found.items
    assert item == Item("topic-0-15", WORK.encode(), f"topic-0:{ENCODED}", shard="topic-0")
    record = {**KAFKA["records"]["topic-0"][0], "value": None}  # its key was deleted
    found = batch({**KAFKA, "records": {"t-0": [record]}})
    assert [(item.id, item.body) for item in found.items] == [("t-0-15", b"null")]


# ---------------------------------------------------------------------------- broken ones


def test_one_broken_record_leaves_the_others() -> None:
    good = {"messageId": "m1", "eventSource": "aws:sqs", "body": "1"}
    for body in ({}, {"body": None}, {"body": 5}, {"body": "1", "attributes": 5}):
        bad = {"messageId": "m2", "eventSource": "aws:sqs", **body}
        if "attributes" in body:
            bad["eventSourceARN"] = "a.fifo"
        first, second = batch({"Records": [good, bad]}).items
        assert (first.problem, first.body) == ("", b"1")
        assert second.id == "m2"
        assert second.problem


@pytest.mark.parametrize(
    "records",
    [
        [{"eventSource": "aws:sqs", "messageId": "m", "body": ""}, {"eventSource": "aws:sns"}],
        [{"eventSource": "aws:sqs", "messageId": "m", "body": ""}, None],
        [{"eventSource": "aws:sqs", "body": ""}],
        [{"eventSource": "aws:sqs", "messageId": "", "body": ""}],
        [{"eventSource": "aws:sqs", "messageId": 5, "body": ""}],
        [{"eventSource": "aws:kinesis", "kinesis": {"data": ""}}],
        [{"eventSource": "aws:dynamodb", "dynamodb": None}],
    ],
)
def test_records_whose_failure_could_not_be_told_fail_as_a_whole(records: list[Any]) -> None:
    with pytest.raises(BadRequest, match="the event has"):
        read({"Records": records})


def test_partitions_that_are_none() -> None:
    with pytest.raises(BadRequest, match="no list of records"):
        read({**KAFKA, "records": {"topic-0": {}}})
    (item,) = batch({**KAFKA, "records": {"topic-0": [7]}}).items
    assert item.problem


class Recorder(runtime_api.Line):
    """Takes the answers instead of an API."""

    def __init__(self) -> None:
        super().__init__("nowhere:1")
        self.answers: list[object] = []

    def answer(
        self, event: runtime_api.Event, body: bytes, content_type: str
    ) -> runtime_api.Answer:
        self.answers.append(json.loads(body))
        return runtime_api.Answer(body, None)

    async def taken(self, answer: runtime_api.Answer) -> None:
        pass

    async def fail(self, event: runtime_api.Event, problem: Any) -> None:
        self.answers.append(problem)


async def answers(functions: FakeFunctions, bodies: list[bytes]) -> list[Any]:
    """What each event is answered, which is one thing."""
    metrics = Metrics()
    app = create_app(functions, metrics, max_body_nbytes=1 << 20, version="0")
    invocations = Invocations(
        Caller(functions, metrics),
        lambda: app,
        streaming=False,
        objects=lambda: Objects(1 << 20, None),
    )
    found = []
    for body in bodies:
        line = Recorder()
        await invocations.answer(line, runtime_api.Event("id", body, 4e9, {}))
        (answer,) = line.answers
        found.append(answer)
    return found


WRONG: list[Any] = [None, True, 0, -1.5, "", "x", "\ud800", [], [None], {}, {"a": 1}, "=", 10**400]


def mutated(event: Any, chance: random.Random) -> bytes:
    """A copy with something missing, of another type, or doubled; or text that is cut or garbled."""
    event = copy.deepcopy(event)
    for _ in range(chance.randint(1, 3)):
        places = list(walk(event))
        parent, key = chance.choice(places)
        match chance.randrange(3):
            case 0:
                del parent[key]
            case 1:
                parent[key] = chance.choice(WRONG)
            case 2 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
        if not event:
            break
    text = bytearray(json.dumps(event).encode())
    match chance.randrange(8):
        case 0:
            del text[chance.randrange(len(text)) :]
        case 1:
            text[chance.randrange(len(text))] = chance.randrange(256)
    return bytes(text)


def walk(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from walk(inner)


def test_whatever_comes_there_is_one_answer_and_no_surprise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = random.Random(20)
    bodies = [mutated(event, chance) for event in all_kinds().values() for _ in range(150)]
    caplog.set_level(logging.ERROR)
    assert len(asyncio.run(answers(FakeFunctions(), bodies))) == len(bodies)
    assert "unexpected error" not in caplog.text


# ---------------------------------------------------------------------------- as AWS's own library reads them

POWERTOOLS = textwrap.dedent(
    """
    import base64, json, sys
    from aws_lambda_powertools.utilities import batch
    from aws_lambda_powertools.utilities import data_classes as d

    def request(e):
        return [e.http_method, e.path, e.decoded_body]

    def text(data):
        return data.decode() if isinstance(data, bytes) else data

    READ = {
        "function URL": lambda e: request(d.LambdaFunctionUrlEvent(e)),
        "HTTP API": lambda e: request(d.APIGatewayProxyEventV2(e)),
        "REST API": lambda e: request(d.APIGatewayProxyEvent(e)),
        "ALB": lambda e: request(d.ALBEvent(e)),
        "SQS": lambda e: [[r.message_id, r.body] for r in d.SQSEvent(e).records],
        "SQS FIFO": lambda e: [[r.message_id, r.body, r.attributes.message_group_id] for r in d.SQSEvent(e).records],
        "SNS": lambda e: [[r.sns.message_id, r.sns.message] for r in d.SNSEvent(e).records],
        "S3": lambda e: [f"{r.s3.bucket.name}/{e['Records'][0]['s3']['object']['key']}" for r in d.S3Event(e).records],
        "Kinesis": lambda e: [[r.kinesis.sequence_number, r.kinesis.data_as_text()] for r in d.KinesisStreamEvent(e).records],
        "DynamoDB": lambda e: [[r.dynamodb.sequence_number, r.dynamodb.new_image or None] for r in d.DynamoDBStreamEvent(e).records],
        "EventBridge": lambda e: [d.EventBridgeEvent(e).get_id, d.EventBridgeEvent(e).detail],
        "MSK": lambda e: [[f"{r.topic}-{r.partition}-{r.offset}", text(r.decoded_value)] for r in d.KafkaEvent(e).records],
    }

    def handle(record):
        if "bad" in json.dumps(record.raw_event):
            raise ValueError("bad")

    given = json.load(sys.stdin)
    told = {name: READ[name](event) for name, event in given["kinds"].items() if name in READ}
    told["failures"] = []
    kinds = [batch.EventType.SQS, batch.EventType.KinesisDataStreams, batch.EventType.DynamoDBStreams]
    for kind, event in zip(kinds, given["batches"]):
        processor = batch.BatchProcessor(event_type=kind)
        told["failures"].append(batch.process_partial_response(event, handle, processor))
    fifo = batch.SqsFifoPartialProcessor()
    told["failures"].append(batch.process_partial_response(given["fifo"], handle, fifo))
    json.dump(told, sys.stdout, default=str)
    """
)


def test_powertools_reads_and_answers_the_same() -> None:
    python = parts.venv("aws-lambda-powertools==3.37.0")
    kinds = all_kinds()
    records = ["a", "bad", "c", "bad"]
    batches = [sqs(records), kinesis(records), dynamodb(records), sqs(records, "q.fifo")]
    given = json.dumps({"kinds": kinds, "batches": batches[:3], "fifo": batches[3]})
    run = subprocess.run([python, "-c", POWERTOOLS], input=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    for name in ("function URL", "HTTP API", "REST API", "ALB"):
        found = request(kinds[name])
        assert [found.method, found.path, found.body.decode()] == told[name]
    for name in ("SQS", "SNS", "Kinesis", "MSK"):
        assert [[item.id, item.body.decode()] for item in batch(kinds[name]).items] == told[name]
    items = batch(kinds["SQS FIFO"]).items
    assert [[item.id, item.body.decode(), item.group] for item in items] == told["SQS FIFO"]
    assert [item.id for item in batch(kinds["S3"]).items] == told["S3"]
    images = [json.loads(item.body).get("NewImage") for item in batch(kinds["DynamoDB"]).items]
    ids = [item.id for item in batch(kinds["DynamoDB"]).items]
    told["DynamoDB"] = [
        [id_, image and {**image, "Id": int(image["Id"])}] for id_, image in told["DynamoDB"]
    ]
    assert [[id_, image] for id_, image in zip(ids, images, strict=True)] == told["DynamoDB"]
    (item,) = batch(kinds["EventBridge"]).items
    assert [item.id, json.loads(item.body)] == told["EventBridge"]

    async def bad(call: Invocation) -> None:
        if b"bad" in call.body:
            raise ValueError("bad")

    ours = asyncio.run(answers(FakeFunctions(bad), [json.dumps(each).encode() for each in batches]))
    for found, theirs in zip(ours, told["failures"], strict=True):
        # Of a stream they tell every failure, and Lambda goes on from the lowest; so we tell that.
        whole = len(found["batchItemFailures"]) == len(theirs["batchItemFailures"])
        assert found["batchItemFailures"][0] == theirs["batchItemFailures"][0]
        assert whole or found["batchItemFailures"] == theirs["batchItemFailures"][:1]


def sqs(bodies: list[str], queue: str = "q") -> Any:
    made = [
        {
            "messageId": f"m{place}",
            "eventSource": "aws:sqs",
            "eventSourceARN": f"arn:aws:sqs:us-east-2:123456789012:{queue}",
            "attributes": {"MessageGroupId": "g"},
            "body": json.dumps(body),
        }
        for place, body in enumerate(bodies)
    ]
    return {"Records": made}


def kinesis(bodies: list[str]) -> Any:
    made = []
    for place, body in enumerate(bodies):
        data = base64.b64encode(json.dumps(body).encode()).decode()
        inner = {"sequenceNumber": f"{place}", "data": data, "note": body}
        made.append({"eventSource": "aws:kinesis", "kinesis": inner})
    return {"Records": made}


def dynamodb(bodies: list[str]) -> Any:
    made = []
    for place, body in enumerate(bodies):
        inner = {"SequenceNumber": f"{place}", "Keys": {"k": {"S": body}}}
        made.append({"eventSource": "aws:dynamodb", "eventName": "INSERT", "dynamodb": inner})
    return {"Records": made}
