"""Errors as HTTP replies: ``application/problem+json`` (RFC 9457).

Knows no route. The members come from ``zerowake.runtime.errors.to_problem``; what only an HTTP edge
can do wrong is declared here.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from zerowake.runtime.errors import InvocationError, UnsupportedEncoding, to_problem
from zerowake.runtime.gateway.asgi import Headers
from zerowake.snapshot.errors import ZerowakeError

log = logging.getLogger("zerowake.gateway")

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "What went wrong (RFC 9457). `code` is stable, `detail` is for people.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "examples": ["invalid_input"]},
        "detail": {"type": "string"},
        "retry_after_s": {"type": "number", "description": "A repetition may succeed after this."},
        "errors": {
            "type": "array",
            "description": "The places in the body that do not fit.",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {
                    "field": {"type": "string", "description": "JSON pointer (RFC 6901)"},
                    "message": {"type": "string"},
                },
            },
        },
    },
}


class NoSuchRoute(InvocationError):
    status, code = 404, "not_found"


class MethodNotAllowed(InvocationError):
    """``allow``: the methods that the route knows, as the Allow header wants them."""

    status, code = 405, "method_not_allowed"

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"{path} does not take {method}; use {allow} (/docs shows what there is)")
        self.allow = allow


class CrossOrigin(InvocationError):
    status, code = 403, "cross_origin"


class NotReady(InvocationError):
    status, code = 503, "not_ready"


def describe(error: Exception, where: str) -> dict[str, Any]:
    """The problem of an error met at ``where``; one that nobody raised on purpose is logged."""
    if isinstance(error, ZerowakeError):
        return to_problem(error)
    log.error("unexpected error at %s", where, exc_info=error)
    return to_problem(
        ZerowakeError(
            f"{type(error).__name__} in the gateway itself; its log has the rest ({where})"
        )
    )


def reply(problem: Mapping[str, Any], error: Exception | None = None) -> tuple[int, Headers, bytes]:
    """Status, headers (without content-length) and body of the reply that tells ``problem``."""
    headers: Headers = [(b"content-type", b"application/problem+json")]
    if (retry_after_s := problem.get("retry_after_s")) is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, UnsupportedEncoding):
        headers.append((b"accept-encoding", b"identity"))
    return problem["status"], headers, json.dumps(problem).encode()
