"""What a caller's side says of a call reaches a handler."""

from collections.abc import Callable

from platforms import PUSH, PushContainer, event

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOTHING = {"request_id": "", "trace": "", "tenant": "", "client_context": ""}


def test_over_http(on: Callable[..., PushContainer]) -> None:
    container = on(PUSH[0], "told.py:told")
    assert container.request("POST", "/", b"1").json() == NOTHING
    headers = {"x-request-id": "a b/ü", "traceparent": TRACE}
    sent = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    reply = container.request("POST", "/", b"1", sent)
    assert reply.json() == {**NOTHING, "request_id": sent["x-request-id"], "trace": TRACE}
    assert reply.headers["zerowake-invocation"] != sent["x-request-id"]  # it is no id for a log

    reply = container.request("POST", "/invoke/told", b"1", {"traceparent": TRACE})
    assert reply.json() == {**NOTHING, "trace": TRACE}
    claimed = {"x-amz-tenant-id": "t", "lambda-runtime-aws-tenant-id": "t"}
    assert container.request("POST", "/", b"1", claimed).json() == NOTHING
    reply = container.event(event(1), traceparent=TRACE)
    assert reply.json() == {**NOTHING, "trace": TRACE}
