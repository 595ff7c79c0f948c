"""What Lambda says of an invocation reaches the function, whatever brings it."""

import base64
import json
from collections.abc import Callable

import pytest
from emulator import Emulator
from test_invocations import Slot, http, run, sqs

from zerowake.runtime.invocation import Origin

TOLD = {
    "Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1",
    "Aws-Tenant-Id": "tenant-1",
    "Client-Context": '{"client":{}}',
}


@pytest.mark.parametrize("event", [1, http(), sqs("1", "2")])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_call_has_the_origin_of_its_invocation(event: object, streaming: bool) -> None:
    async def test(slot: Slot) -> None:
        id_ = slot.api.invoke(event, **TOLD)
        await slot.api.answer(id_)
        trace, tenant, client = TOLD.values()
        for call in slot.functions.calls:
            assert call.origin == Origin(id_, trace, tenant, client)
        assert slot.functions.calls

    run(test, streaming=streaming)


def test_on_the_emulator(emulate: Callable[..., Emulator]) -> None:
    context = json.dumps({"custom": {"a": "ü"}}, ensure_ascii=False).encode()
    environment = emulate("told.py:told")
    headers = {"X-Amz-Client-Context": base64.b64encode(context).decode()}
    told = environment.invoke(b"1", headers).json()
    assert len(told["request_id"]) == 36
    assert json.loads(told["client_context"]) == {"custom": {"a": "ü"}}
