"""``zerowake.adapters.http1``: one response after the other, out of what has arrived."""

import pytest

from zerowake.adapters.http1 import Response, parse

ONE = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
TRAILED = CHUNKED[:-2] + b"Trailer: x\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize("first", [ONE, CHUNKED, TRAILED, EMPTY])
@pytest.mark.parametrize("cut", [0, 1, 30, len(ONE)])
def test_what_comes_behind_a_response_stays(first: bytes, cut: int) -> None:
    data = bytearray(first + ONE[:cut])
    found = parse(data, False)
    assert found is not None
    response, nbytes = found
    assert response.body == (b"" if first is EMPTY else b"ok") and response.keeps_alive
    assert data[nbytes:] == ONE[:cut]


@pytest.mark.parametrize("whole", [ONE, CHUNKED, TRAILED, EMPTY])
def test_a_part_of_one_is_none(whole: bytes) -> None:
    for end in range(len(whole)):
        assert parse(bytearray(whole[:end]), False) is None
    assert isinstance(parse(bytearray(whole), False), tuple)


def test_what_tells_no_length_ends_with_its_connection() -> None:
    data = bytearray(ONE.replace(b"Content-Length: 2\r\n", b""))
    assert parse(data, False) is None
    assert parse(data, True) == (Response(202, {}, b"ok", keeps_alive=False), len(data))
