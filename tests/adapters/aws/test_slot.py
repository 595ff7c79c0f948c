"""``zerowake.adapters.aws.slot``: what ends in the middle, on a connection that a test holds."""

import os
import socket

import pytest

from zerowake.adapters.aws import slot as slots
from zerowake.adapters.aws.slot import Slot

EVENT = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nLambda-Runtime-Deadline-Ms: 99999999999999\r\n"
    b"Lambda-Runtime-Aws-Request-Id: id-1\r\n\r\n1"
)


def test_nothing_can_be_sent_behind_a_part_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway, which has the connection too, sends it again on another one."""
    monkeypatch.setattr(slots, "SEND_S", 0.05)
    theirs, platform = socket.socketpair()
    with theirs, platform:
        slot = Slot(1, os.dup(theirs.fileno()), address="h:1", function="f", content_type="t")
        platform.sendall(EVENT)
        call = slot.read()
        assert call is not None
        slot.was_told()
        call.finish(b"x" * (4 << 20))
        assert slot.over and slot.unacknowledged and not slot.event
        with pytest.raises(OSError):
            theirs.send(b"POST")
        assert theirs.recv(1) == b""
        slot.close()


@pytest.mark.parametrize("end", [len(EVENT), len(EVENT) - 1, 10])
def test_nothing_of_a_call_is_taken_before_it_is_told(end: int) -> None:
    """Or it would go lost with this process; what has not come whole waits there for the rest."""
    theirs, platform = socket.socketpair()
    with theirs, platform:
        slot = Slot(1, os.dup(theirs.fileno()), address="h:1", function="f", content_type="t")
        platform.sendall(EVENT[:end])
        call = slot.read()
        assert (call is not None) is (end == len(EVENT)) and not slot.over
        assert theirs.recv(1 << 16, socket.MSG_PEEK) == EVENT[:end]
        if call is None:
            platform.sendall(EVENT[end:])
            call = slot.read()
        assert call is not None and call.body == b"1"
        assert theirs.recv(1 << 16, socket.MSG_PEEK) == EVENT
        slot.was_told()
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        slot.close()


def test_what_is_too_large_to_wait_there_is_the_gateways() -> None:
    theirs, platform = socket.socketpair()
    with theirs, platform:
        slot = Slot(1, os.dup(theirs.fileno()), address="h:1", function="f", content_type="t")
        part = EVENT.replace(b"Length: 1", b"Length: 99999") + b"1" * slots.WAIT_NBYTES
        platform.sendall(part)
        assert slot.read() is None and slot.over and slot.polled
        assert theirs.recv(1 << 18, socket.MSG_PEEK) == part
        slot.close()
