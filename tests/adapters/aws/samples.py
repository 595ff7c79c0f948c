"""Events as AWS sends them: those of ``sam local generate-event``, and some that it does not have."""

import base64
import json
import re
from typing import Any

import parts
from rie import WHEEL

WORK = '{"a": 1, "b": [2, 3]}'  # what the function is called with
ENCODED = base64.b64encode(WORK.encode()).decode()


def generated(kind: str, **values: str) -> Any:
    """``generated("sqs/Sqs", body="...")``: its template, with values for its places."""
    folder = parts.wheel_folder(WHEEL, "samcli/lib/generated_sample_events/events")
    template = (folder / f"{kind}.json").read_text()

    def fill(found: "re.Match[str]") -> str:
        return json.dumps(values.get(found[1], found[1]))[1:-1]

    return json.loads(re.sub(r"\{\{\{(\w+)\}\}\}", fill, template))


def all_kinds() -> dict[str, Any]:
    """Every kind of event that is more than a payload, by its name."""
    more = {"body": ENCODED, "method": "POST", "path": "any/where", "stage": "$default"}
    return {
        "HTTP API": generated("apigateway/HttpApi", **more),
        "REST API": generated("apigateway/AwsProxy", **more),
        "ALB": generated("alb/ALBRequest", **more),
        "function URL": FUNCTION_URL,
        "SQS": generated("sqs/Sqs", body=WORK),
        "SQS FIFO": FIFO,
        "SNS": generated("sns/Sns", message=WORK),
        "S3": generated("s3/S3Put", bucket="shelf", key="a+b.png"),
        "S3 removal": generated("s3/S3Delete", bucket="shelf", key="a+b.png"),
        "Kinesis": generated("kinesis/Kinesis", data=ENCODED, sequence="4959"),
        "DynamoDB": generated("dynamodb/DynamoDBUpdate"),
        "EventBridge": generated("cloudwatch/ScheduledEvent"),
        "MSK": KAFKA,
    }


FUNCTION_URL: Any = {
    "version": "2.0",
    "routeKey": "$default",
    "rawPath": "/my/path",
    "rawQueryString": "a=1&a=2&b=%20",
    "cookies": ["one=1", "two=2"],
    "headers": {"content-type": "application/json", "x-forwarded-for": "192.0.2.1"},
    "queryStringParameters": {"a": "1,2", "b": " "},
    "requestContext": {
        "accountId": "anonymous",
        "domainName": "id.lambda-url.us-west-2.on.aws",
        "http": {
            "method": "POST",
            "path": "/my/path",
            "protocol": "HTTP/1.1",
            "sourceIp": "192.0.2.1",
            "userAgent": "agent",
        },
        "requestId": "id",
        "routeKey": "$default",
        "stage": "$default",
    },
    "body": WORK,
    "isBase64Encoded": False,
}

FIFO: Any = {
    "Records": [
        {
            "messageId": f"m{place}",
            "receiptHandle": "handle",
            "body": WORK,
            "attributes": {"MessageGroupId": "ab"[place % 2], "SequenceNumber": f"{place}"},
            "messageAttributes": {},
            "md5OfBody": "0",
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:queue.fifo",
            "awsRegion": "us-east-2",
        }
        for place in range(4)
    ]
}

KAFKA: Any = {
    "eventSource": "aws:kafka",
    "eventSourceArn": "arn:aws:kafka:us-east-1:123456789012:cluster/vpc-2priv-2pub/751d2973",
    "bootstrapServers": "b-2.demo.kafka.us-east-1.amazonaws.com:9092",
    "records": {
        "topic-0": [
            {
                "topic": "topic",
                "partition": 0,
                "offset": 15,
                "timestamp": 1545084650987,
                "timestampType": "CREATE_TIME",
                "key": ENCODED,
                "value": ENCODED,
                "headers": [{"name": [104, 105]}],
            }
        ]
    },
}
