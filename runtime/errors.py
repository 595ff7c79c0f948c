"""What can go wrong with an invocation or a function, as the caller sees it (RFC 9457).

The tree below ``ZerowakeError``::

    InvocationError
    |- BadRequest            400 bad_request            body does not parse
    |- InvalidInput          422 invalid_input          body or a value in it does not fit the schema
    |- UnknownFunction       404 unknown_function
    |- TooLarge              413 body_too_large
    |- HeadersTooLarge       431 headers_too_large      so is what stands before the body
    |- UnsupportedEncoding   415 unsupported_encoding   body is compressed
    |- QueueFull             429 queue_full             with Retry-After
    |- FunctionBusy          409 function_busy          calls or settings keep it from sleeping
    |- Unforkable            409 unforkable             it leaves threads or sockets behind: no zygote
    |- Cancelled             499 cancelled              the client left; only seen in logs and metrics
    |- HandlerFailed         500 handler_failed         the author's code raised
    |- WrongResultCount      500 wrong_result_count     a batch of n did not return n results
    |- BadResult             500 bad_result             a result cannot be encoded
    |- InstanceDied          502 instance_died          the process died under the item, twice
    |- FunctionFailed        503 function_failed        the function does not start
    |- ZygoteLost            503 zygote_lost            a zygote ended before it had done what was asked
    |- Draining              503 draining
    |- PredictTimeout        504 predict_timeout
    |- RemoteError           as it was elsewhere        what another process reported
    |  |- HttpFailed         as answered, http_failed   a function that answers requests (``exchange``) has failed
    DeclarationError         422 bad_declaration        @function with contradictory or unknown settings
    ConfigError              422 bad_config             a setting that cannot be carried out
    TargetError              422 bad_target             path/app.py:Class or package.module:Class not found

What only HTTP can do wrong (403 cross_origin, 404 not_found, 405, 503 not_ready) is declared in
``gateway.problems``, what one platform's protocol can beside its adapter.
"""

import traceback
from typing import Any

from zerowake.snapshot.errors import ZerowakeError

MAX_DETAIL_NCHARS = 10_000  # of what an error says to its caller; the log has all of it


class InvocationError(ZerowakeError):
    """An invocation that ends without a result.

    Parameters
    ----------
    message: what was found, what was wanted, what to do.
    retry_after_s: seconds after which a repetition may succeed; None when it will not.
    errors: places in the body that do not fit, each ``{"field": "/path", "message": ...}``.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.errors = errors


class BadRequest(InvocationError):
    status, code = 400, "bad_request"


class InvalidInput(InvocationError):
    """Raise it from ``predict`` to answer 422: the input is understood and not acceptable."""

    status, code = 422, "invalid_input"


class UnknownFunction(InvocationError):
    status, code = 404, "unknown_function"


class TooLarge(InvocationError):
    status, code = 413, "body_too_large"


class HeadersTooLarge(InvocationError):
    status, code = 431, "headers_too_large"


class UnsupportedEncoding(InvocationError):
    status, code = 415, "unsupported_encoding"

    def __init__(self, found: bytes) -> None:
        super().__init__(
            f"the body has Content-Encoding {found.decode('latin-1'):.30}; it must be sent as it is, "
            "without that header and not compressed"
        )


class QueueFull(InvocationError):
    status, code = 429, "queue_full"


class FunctionBusy(InvocationError):
    status, code = 409, "function_busy"


class Unforkable(InvocationError):
    """rehearsed: importing the function's module leaves nothing behind, the warm-up call does."""

    status, code = 409, "unforkable"

    def __init__(self, message: str, *, rehearsed: bool = False) -> None:
        super().__init__(message)
        self.rehearsed = rehearsed


class Cancelled(InvocationError):
    status, code = 499, "cancelled"


class HandlerFailed(InvocationError):
    status, code = 500, "handler_failed"


class WrongResultCount(InvocationError):
    status, code = 500, "wrong_result_count"


class BadResult(InvocationError):
    status, code = 500, "bad_result"


class InstanceDied(InvocationError):
    status, code = 502, "instance_died"


class FunctionFailed(InvocationError):
    status, code = 503, "function_failed"


class ZygoteLost(InvocationError):
    status, code = 503, "zygote_lost"


class Draining(InvocationError):
    status, code = 503, "draining"


class PredictTimeout(InvocationError):
    status, code = 504, "predict_timeout"


class DeclarationError(ZerowakeError):
    status, code = 422, "bad_declaration"


class ConfigError(ZerowakeError):
    status, code = 422, "bad_config"


class TargetError(ZerowakeError):
    status, code = 422, "bad_target"


class RemoteError(InvocationError):
    """An error that another process reported, with the status and code it had there."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(
            str(problem.get("detail", "")),
            retry_after_s=problem.get("retry_after_s"),
            errors=problem.get("errors"),
        )
        self.problem = problem


def to_problem(error: BaseException) -> dict[str, Any]:
    """The RFC 9457 members of ``error``: type, title, status, code, detail and, if known, errors.

    An exception that is not ours is the author's: 500 ``handler_failed`` with its type and message.
    """
    if isinstance(error, RemoteError):
        return error.problem
    if isinstance(error, ZerowakeError):
        status, code, detail = error.status, error.code, str(error)
    else:
        status, code = HandlerFailed.status, HandlerFailed.code
        detail = "".join(traceback.format_exception_only(error)).strip()
    if (
        len(detail) > MAX_DETAIL_NCHARS
    ):  # an author's may hold its whole input, which no frame takes
        detail = f"{detail[:MAX_DETAIL_NCHARS]}... ({len(detail)} characters)"
    problem = problem_of(status, code, detail)
    if isinstance(error, InvocationError):
        if error.retry_after_s is not None:
            problem["retry_after_s"] = error.retry_after_s
        if error.errors:
            problem["errors"] = error.errors
    return problem


def problem_of(status: int, code: str, detail: str) -> dict[str, Any]:
    """The RFC 9457 members that every problem has."""
    return {
        "type": f"urn:zerowake:error:{code}",
        "title": code.replace("_", " "),
        "status": status,
        "code": code,
        "detail": detail,
    }
