"""``zerowake.adapters.aws.runtime_api``: one connection against a scripted Runtime API."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_api import LOST, RESET, FakeApi

from zerowake.adapters.aws import runtime_api
from zerowake.adapters.aws.messages import Event, next_request, response_request
from zerowake.adapters.aws.runtime_api import Line, Refused, RuntimeApiError
from zerowake.adapters.http1 import parse
from zerowake.runtime.errors import HandlerFailed, to_problem

PROBLEM = to_problem(HandlerFailed("it went wrong"))


def run(test: Callable[[FakeApi, Line], Awaitable[None]]) -> None:
    async def main() -> None:
        async with FakeApi().running() as api:
            line = Line(api.address)
            await test(api, line)
            line.close()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_api, "RETRIES_S", (0.0, 0.0, 0.0))


def test_one_connection_polls_and_answers() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        first = api.invoke({"x": 1}, **{"Invocation-Id": "inv-1"})
        second = api.invoke(b"\xff raw")
        event = await line.next()
        assert (event.id, event.body, event.invocation_id) == (first, b'{"x": 1}', "inv-1")
        await line.respond(event, b"[1]", "application/json")
        answer = api.answers[first]
        assert (answer.body, answer.headers["content-type"]) == (b"[1]", "application/json")
        assert answer.headers["lambda-runtime-invocation-id"] == "inv-1"
        event = await line.next()
        assert event.body == b"\xff raw"
        await line.fail(event, PROBLEM)
        answer = api.answers[second]
        assert answer.kind == "error"
        assert answer.headers["lambda-runtime-function-error-type"] == "Function.HandlerFailed"
        told = answer.json()
        assert told["errorMessage"] == "it went wrong"
        assert (told["errorType"], told["stackTrace"]) == ("Function.HandlerFailed", [])
        assert told["requestId"] == second
        assert "lambda-runtime-invocation-id" not in answer.headers
        assert api.connections == 1

    run(test)


@pytest.mark.parametrize("verb", ["respond", "fail", "stream"])
@pytest.mark.parametrize("status", [400, 403, 413, 500])
def test_what_an_answer_is_answered(verb: str, status: int) -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.invoke(1)
        event = await line.next()
        api.faults = {"response": [status], "error": [status]}
        with pytest.raises(RuntimeApiError if status == 500 else Refused, match="as scripted") as e:
            await answer(line, event, verb)
        assert status == 500 or e.value.http_status == status
        api.invoke(2)  # and the line is as good as before
        assert (await line.next()).body == b"2"

    run(test)


async def answer(line: Line, event: Event, verb: str) -> None:
    match verb:
        case "respond":
            await line.respond(event, b"1", "application/json")
        case "fail":
            await line.fail(event, PROBLEM)
        case "stream":
            stream = await line.stream(event, "text/plain")
            await stream.write(b"1")
            await stream.finish()
            stream.close()


@pytest.mark.parametrize("status", [202, 400, 403, 500])
def test_a_poll_that_brings_nothing_is_the_end(status: int) -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.faults = {"next": [status]}
        with pytest.raises(RuntimeApiError, match=f"/next answers {status}: as scripted"):
            await line.next()

    run(test)


@pytest.mark.parametrize("missing", ["Deadline-Ms", "Aws-Request-Id"])
def test_an_invocation_without_what_it_needs(missing: str) -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.invoke(1, **{missing: "" if missing == "Deadline-Ms" else "x"})
        if missing == "Deadline-Ms":
            with pytest.raises(RuntimeApiError, match="/next gives an invocation without"):
                await line.next()
        else:
            assert (await line.next()).id == "x"

    run(test)


def test_a_reset_is_tried_again_and_nothing_is_answered_twice() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.faults = {"next": [RESET, RESET], "response": [RESET, RESET], "error": [LOST]}
        first = api.invoke(1)
        await line.respond(await line.next(), b"1", "application/json")
        second = api.invoke(2)
        with pytest.raises(Refused) as e:  # the first try had arrived
            await line.fail(await line.next(), PROBLEM)
        assert e.value.http_status == 403
        assert (api.answers[first].complete, api.refused) == (True, [second])

    run(test)


def test_an_api_that_is_gone() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.faults = {"next": [RESET] * 9}
        with pytest.raises(RuntimeApiError, match=f"the Runtime API at {api.address}"):
            await line.next()
        with pytest.raises(RuntimeApiError):
            await Line("127.0.0.1:1").next()

    run(test)


def test_a_connection_that_was_closed_meanwhile_is_opened_anew() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.invoke(1)
        event = await line.next()
        api.cut()
        await line.respond(event, b"1", "application/json")
        assert api.answers[event.id].complete
        assert api.connections == 2

    run(test)


def test_what_a_cancelled_poll_would_have_brought_is_not_taken_for_an_answer() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        poll = asyncio.create_task(line.next())
        await api.until(lambda: api.polling)
        assert line.idle
        poll.cancel()
        await asyncio.wait([poll])
        await api.until(lambda: not api.polling)
        api.invoke("later")
        assert (await line.next()).body == b'"later"'

    run(test)


def test_an_answer_takes_the_next_poll_along() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        line.polls_on = True
        first, second = api.invoke(1), api.invoke(2)
        event = await line.next()
        await line.respond(event, b"1", "application/json")
        await api.until(lambda: not api.waiting)
        assert api.requests == ["next", "response", "next"]
        event = await line.next()
        assert (event.id, api.answers[first].body) == (second, b"1")
        line.polls_on = False
        await line.respond(event, b"2", "application/json")
        assert api.requests.count("next") == 2 and not api.polling
        assert api.connections == 1

    run(test)


def test_a_poll_that_went_along_is_idle_until_it_brings_something() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        line.polls_on = True
        api.invoke(1)
        await line.respond(await line.next(), b"1", "application/json")
        await api.until(lambda: api.polling)
        assert line.idle and not line.brings
        api.invoke(2)
        await api.until(lambda: not api.polling)
        assert line.brings and not line.idle
        assert (await line.next()).body == b"2"

    run(test)


def test_an_error_instead_of_a_refused_answer_does_not_wait_for_the_poll_that_went_along() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        line.polls_on = True
        api.faults = {"response": [413]}
        first = api.invoke(1)
        with pytest.raises(Refused):
            event = await line.next()
            await line.respond(event, b"1", "application/json")
        await line.fail(event, PROBLEM)
        assert api.answers[first].kind == "error"
        assert api.connections == 2 and api.requests.count("next") == 2
        api.invoke(2)
        assert (await line.next()).body == b"2"

    run(test)


@pytest.mark.parametrize("lost", [{"response": [LOST]}, {"next": [LOST]}])
def test_an_answer_and_its_poll_survive_a_connection_that_breaks_off(
    lost: dict[str, list[int | str]],
) -> None:
    async def test(api: FakeApi, line: Line) -> None:
        line.polls_on = True
        first = api.invoke(1)
        event = await line.next()
        api.faults = lost
        with contextlib.suppress(Refused):  # the first one had arrived
            await line.respond(event, b"1", "application/json")
        assert api.answers[first].body == b"1"
        api.invoke(2)
        assert (await line.next()).body == b"2"

    run(test)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("read", [True, False])
def test_what_came_on_a_connection_in_the_hands_of_a_process_that_has_ended(
    read: bool, together: bool
) -> None:
    """It has answered and polled, and may have read that its answer was taken."""

    async def test(api: FakeApi, line: Line) -> None:
        given = await lent_after_one(api, line)
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(given)) as own:
            id_ = api.invoke(2)
            found = parse(bytearray(data := await loop.sock_recv(own, 1 << 16)), False)
            assert found is not None
            answer = response_request(api.address, Event.of(found[0]), b"2", "application/json")
            await loop.sock_sendall(own, answer + next_request(api.address))
            await api.answer(id_)
            await arrived(own, b"202 Whatever")
            if read:
                await loop.sock_recv(own, 1 << 16)
            if together:
                api.invoke(3)
                await arrived(own, b"200 Whatever")
        assert line.was_read(len(data)) is read
        if read:
            line.regain(polled=True)
        else:
            assert await line.regain_answer(5.0, polled=True)
        if not together:
            asyncio.get_running_loop().call_later(0.05, api.invoke, 3)
        async with asyncio.timeout(api.patience_s):
            event = await line.next()
        assert event.body == b"3"
        await line.respond(event, b"3", "application/json")
        assert api.connections == 1

    run(test)


async def lent_after_one(api: FakeApi, line: Line) -> int:
    """The line, lent with a poll on its way that went along with an answer."""
    line.polls_on = True
    api.invoke(1)
    await line.respond(await line.next(), b"1", "application/json")
    given = line.lend()
    assert given is not None
    return given


async def arrived(own: socket.socket, what: bytes) -> None:
    """Wait until it lies in the socket's buffer, unread."""
    while True:
        with contextlib.suppress(BlockingIOError):
            if what in own.recv(1 << 16, socket.MSG_PEEK):
                return
        await asyncio.sleep(0.001)


def test_a_poll_whose_event_is_on_its_way_is_not_idle() -> None:
    """Be it that only the kernel knows of it."""
    asked, sent = threading.Event(), threading.Event()

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)
            asked.wait()
            connection.sendall(GOOD[:20])
            sent.set()
            connection.recv(1)
            connection.sendall(GOOD[20:])
            connection.recv(1)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=serve, args=(server,), daemon=True).start()
            host, port = server.getsockname()
            line = Line(f"{host}:{port}")
            poll = asyncio.create_task(line.next())
            assert line.idle
            asked.set()
            while not sent.is_set():
                await asyncio.sleep(0)
            assert not line.idle
            line._wire.write(b".")  # type: ignore[union-attr]
            assert (await asyncio.wait_for(poll, 30)).body == b"[]"
            line.close()

    asyncio.run(main())


def test_chunks_arrive_as_they_are_written_and_errors_in_trailers() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        id_ = api.invoke(1)
        stream = await line.stream(await line.next(), "text/plain")
        for place in range(3):
            await stream.write(b"%d" % place)
            await stream.write(b"")  # an empty chunk would be the end
            assert len(await api.chunks(id_, place + 1)) == place + 1
        assert not api.answers[id_].complete
        await stream.fail(PROBLEM)
        answer = api.answers[id_]
        assert answer.headers["lambda-runtime-function-response-mode"] == "streaming"
        assert answer.chunks == [b"0", b"1", b"2"]
        type_ = answer.trailers["lambda-runtime-function-error-type"]
        body = json.loads(base64.b64decode(answer.trailers["lambda-runtime-function-error-body"]))
        assert type_ == body["errorType"] == "Function.HandlerFailed"
        assert body["errorMessage"] == "it went wrong"

    run(test)


def test_a_reader_that_leaves_is_noticed() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        id_ = api.invoke(1)
        stream = await line.stream(await line.next(), "text/plain")
        await stream.write(b"1")
        await api.until(lambda: id_ in api.answers)
        api.answers[id_].leave()
        await asyncio.wait([stream.gone])
        with pytest.raises(OSError):
            await stream.write(b"2")
        with pytest.raises(OSError):
            await stream.finish()

    run(test)


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nLambda-Runtime-Deadline-Ms: 1000\r\nLambda-Runtime-Aws-Request-Id: i\r\n\r\n[]"
CHUNKED = GOOD.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2]


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (GOOD, b"[]"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, b"[]"),
        (CHUNKED + b"1\r\n[\r\n1;extension\r\n]\r\n0\r\n\r\n", b"[]"),
        (CHUNKED + b"A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n", b"0123456789"),
        (GOOD.replace(b"Content-Length: 2\r\n", b""), b"[]"),  # to the end of the connection
        (GOOD.replace(b"1.1", b"1.0"), b"[]"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_responses_in_any_pieces(sent: bytes, body: bytes, piece: int) -> None:
    assert asyncio.run(poll(sent, piece)).body == body


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        GOOD[:-1],
        GOOD + b"HTTP/1.1 200 OK\r\n",
        GOOD.replace(b": 2", b": -2"),
        GOOD.replace(b": 2", b": two"),
        CHUNKED + b"x\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"1\r\n[]\r\n0\r\n\r\n",
        CHUNKED + b"1\r\n[\r\n",
    ],
)
def test_what_is_no_response_is_the_end_of_the_api(sent: bytes) -> None:
    with pytest.raises(RuntimeApiError):
        asyncio.run(poll(sent, 4096))


async def poll(sent: bytes, piece: int) -> Event:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(sent), piece):
            writer.write(sent[start : start + piece])
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        line = Line(f"{host}:{port}")
        async with asyncio.timeout(30):
            return await line.next()


# -------------------------------------------------------------------- lent lines


@pytest.mark.parametrize("sent", ["nothing", "part of it", "all of it", "all of it, and a poll"])
def test_what_a_dead_process_may_have_answered(sent: str) -> None:
    """Nothing of another answer comes into the middle of its own, and no event is lost."""

    async def test(api: FakeApi, line: Line) -> None:
        lent = await lent_after_one(api, line)
        polled = "poll" in sent
        with socket.socket(fileno=os.dup(lent)) as theirs:
            second, third = api.invoke(2), api.invoke(3)
            await api.until(lambda: second not in api.waiting)
            await arrived(theirs, b"Aws-Request-Id: ")
            theirs.recv(1 << 16)
            event = Event(second, b"", 0.0, {})
            request = response_request(api.address, event, b'"its own"', "application/json")
            if sent == "part of it":
                theirs.sendall(request[:-4])
                await api.until(lambda: second in api.answers)
            elif sent != "nothing":
                theirs.sendall(request + next_request(api.address) * polled)
        assert line.was_written(0) is (sent != "nothing")
        if sent == "nothing":
            line.close()
            answered = False
        else:
            answered = await line.regain_answer(0.3 if "part" in sent else 5.0, polled=polled)
        assert answered is sent.startswith("all")
        if not answered:
            await line.respond(event, b'"another"', "application/json")
        async with asyncio.timeout(5):
            assert (await line.next()).id == third
        own = b'"its own"' if answered else b'"another"'
        assert (api.answers[second].body, api.refused) == (own, [])

    run(test)


@pytest.mark.parametrize("status", [403, 413, 500])
def test_an_answer_of_a_dead_process_that_is_not_taken(status: int) -> None:
    """What the API says to it is not taken for the poll's."""

    async def test(api: FakeApi, line: Line) -> None:
        lent = await lent_after_one(api, line)
        with socket.socket(fileno=os.dup(lent)) as theirs:
            second, third = api.invoke(2), api.invoke(3)
            await arrived(theirs, b"Aws-Request-Id: ")
            theirs.recv(1 << 16)
            event = Event(second, b"", 0.0, {})
            request = response_request(api.address, event, b"2", "application/json")
            api.faults["response"] = [status]
            theirs.sendall(request + next_request(api.address))
        with pytest.raises(RuntimeApiError if status == 500 else Refused, match=f"{status}"):
            await line.regain_answer(5.0, polled=True)
        assert (await line.next()).id == third

    run(test)


def test_a_kernel_that_counts_no_bytes_has_nothing_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(api: FakeApi, line: Line) -> None:
        line.polls_on = True
        for place, told in enumerate((OSError(92, "no such option"), b"", bytes(232))):
            api.invoke(place)
            event = await line.next()
            monkeypatch.setattr(asyncio.trsock.TransportSocket, "getsockopt", answers(told))
            await line.respond(event, b"1", "application/json")
            assert line.lend() is None
            monkeypatch.undo()
        assert line.lend() is not None

    def answers(told: bytes | OSError) -> Callable[..., bytes]:
        def getsockopt(*_arguments: Any) -> bytes:
            if isinstance(told, OSError):
                raise told
            return told

        return getsockopt

    run(test)


def test_what_is_broken_off_ends_though_another_process_holds_it() -> None:
    async def test(api: FakeApi, line: Line) -> None:
        api.invoke(1)
        event = await line.next()
        assert line._wire is not None
        with socket.socket(fileno=os.dup(line._wire.lend())):
            line._wire.write(
                b"POST /2018-06-01/runtime/invocation/id-1/response HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"
            )
            await api.until(lambda: "response" in api.requests)
            line.close()
            async with asyncio.timeout(api.patience_s):
                await line.respond(event, b"2", "application/json")
        assert (api.answers[event.id].body, api.refused) == (b"2", [])

    run(test)
