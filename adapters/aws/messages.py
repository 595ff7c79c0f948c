"""What is said on AWS Lambda's Runtime API (2018-06-01): requests as bytes, invocations out of replies.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html. Pure: ``Line`` says it over asyncio in the
gateway, ``Slot`` over the bare socket in an instance, which is to import nothing else for it.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from zerowake.adapters.http1 import Response, head
from zerowake.runtime.invocation import Origin

VERSION = "2018-06-01"
RESPONSE_NBYTES = 6 * 1024 * 1024 + 100  # the largest answer in one piece
MARGIN_S = (
    0.1  # before an invocation's deadline, to answer before the platform ends the whole environment
)
ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"
ERROR_BODY = "Lambda-Runtime-Function-Error-Body"
JSON, RAW = "application/json", "application/octet-stream"
NO_HEADERS: Mapping[str, str] = {}


class Event(NamedTuple):
    """One invocation as ``/next`` gives it. deadline_s: unix seconds; headers: with lower-case names."""

    id: str
    body: bytes
    deadline_s: float
    headers: Mapping[str, str]

    @classmethod
    def of(cls, response: Response) -> "Event":
        """The invocation in a reply of status 200. Raises ValueError when that does not tell all of it."""
        headers = response.headers
        try:
            deadline_s = int(headers["lambda-runtime-deadline-ms"]) / 1e3
            return cls(headers["lambda-runtime-aws-request-id"], response.body, deadline_s, headers)
        except (KeyError, ValueError, OverflowError) as error:
            raise ValueError(f"an invocation without {error}") from None

    @property
    def invocation_id(self) -> str:
        """Only where several invocations run at a time; goes back with the answer."""
        return self.headers.get("lambda-runtime-invocation-id", "")

    @property
    def origin(self) -> Origin:
        """What the platform says of it, for the function."""

        def said(name: str) -> str:
            """Its text is UTF-8, whatever HTTP says of headers."""
            text = self.headers.get(name, "")
            return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")

        return Origin(
            request_id=self.id,
            trace=said("lambda-runtime-trace-id"),
            tenant=said("lambda-runtime-aws-tenant-id"),
            client_context=said("lambda-runtime-client-context"),
        )

    @property
    def is_direct(self) -> bool:
        """Whether it can only be the function's input, as most direct calls show at once.

        They are not parsed for it: those of AWS's services all have one of these members.
        """
        body = self.body
        return not (
            b'"requestContext"' in body
            or b'"Records"' in body
            or b'"records"' in body
            or b'"detail-type"' in body
        )


def address_of(host: str) -> tuple[str, int]:
    """Where ``AWS_LAMBDA_RUNTIME_API`` says that the API listens."""
    name, _, port = host.rpartition(":")
    return (name or host, int(port) if port.isdecimal() and name else 80)


def next_request(host: str) -> bytes:
    """The poll for an invocation."""
    return get(host, "/runtime/invocation/next")


def response_request(host: str, event: Event, body: bytes, content_type: str) -> bytes:
    """The answer in one piece."""
    headers = {"Content-Type": content_type, **echo(event)}
    return post(host, f"/runtime/invocation/{event.id}/response", headers, body)


def error_request(host: str, event: Event, problem: Mapping[str, Any]) -> bytes:
    """The answer that is an error (RFC 9457 members)."""
    headers = {**error_headers(problem), **echo(event)}
    body = error_body(problem, request_id=event.id)
    return post(host, f"/runtime/invocation/{event.id}/error", headers, body)


def get(host: str, path: str, headers: Mapping[str, str] = NO_HEADERS) -> bytes:
    """A request without a body."""
    return head("GET", versioned(path), host, headers)


def post(host: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A request with a body in one piece."""
    return head("POST", versioned(path), host, {**headers, "Content-Length": str(len(body))}) + body


def versioned(path: str) -> str:
    """The path of the API's version, unless it names another one."""
    return path if path.startswith("/20") else f"/{VERSION}{path}"


def echo(event: Event) -> dict[str, str]:
    """The headers that go back with an answer."""
    given = event.invocation_id
    return {"Lambda-Runtime-Invocation-Id": given} if given else {}


def error_type(problem: Mapping[str, Any]) -> str:
    """``Category.Reason``, as Lambda wants it: ``Function.HandlerFailed``."""
    words = str(problem["code"]).split("_")
    return f"Function.{''.join(word.capitalize() for word in words)}"


def error_headers(problem: Mapping[str, Any]) -> dict[str, str]:
    return {ERROR_TYPE: error_type(problem), "Content-Type": JSON}


def error_body(problem: Mapping[str, Any], type_: str = "", request_id: str = "") -> bytes:
    """An error as Lambda tells it to the caller; what else we know stands in ``problem``."""
    told = {
        "errorMessage": problem["detail"],
        "errorType": type_ or error_type(problem),
        "requestId": request_id,
        "stackTrace": [],  # the author's stands in the log
    }
    return json.dumps({**told, "problem": problem}).encode()


def said(response: Response) -> str:
    """What the API says of a request that it has not taken."""
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(response.body).get("errorMessage", ""))[:300]
    return response.body[:300].decode(errors="replace")
