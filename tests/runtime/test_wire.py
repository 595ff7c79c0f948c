"""Frames survive any cutting of the stream, and descriptors arrive with them."""

import os
import socket

import pytest

from zerowake.runtime.wire import HEAD, Connection, Decoder, encode


def test_frames_are_found_wherever_the_stream_is_cut() -> None:
    frames = [({"kind": "batch", "n": i}, [b"x" * i, b"", b"\x00\xff"]) for i in range(5)]
    stream = b"".join(encode(header, *parts) for header, parts in frames)
    for step in (1, 2, 3, 7, len(stream)):
        decoder = Decoder()
        found = [
            frame
            for start in range(0, len(stream), step)
            for frame in decoder.feed(stream[start : start + step])
        ]
        assert [(frame.header["n"], frame.parts()) for frame in found] == [
            (header["n"], parts) for header, parts in frames
        ]


def test_a_stream_out_of_step_is_noticed() -> None:
    with pytest.raises(ValueError, match="out of step"):
        Decoder().feed(HEAD.pack(1 << 31, 0))


def test_descriptors_travel_with_a_frame_and_are_not_inheritable() -> None:
    here, there = socket.socketpair()
    reader, writer = os.pipe()
    sending, receiving = Connection(here), Connection(there)
    sending.send({"kind": "fork"}, descriptors=[writer])
    os.close(writer)
    frame = receiving.receive()
    assert frame is not None and frame.kind == "fork"
    (arrived,) = receiving.descriptors
    assert not os.get_inheritable(arrived)
    os.write(arrived, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(arrived)
    os.close(reader)
    here.close()
    assert receiving.receive() is None
    there.close()


def test_pending_says_whether_a_frame_is_here() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(encode({"kind": "a"}) + encode({"kind": "b"}))
        connection = Connection(there)
        assert connection.receive().kind == "a"  # type: ignore[union-attr]
        assert connection.pending()
        assert connection.receive().kind == "b"  # type: ignore[union-attr]
        assert not connection.pending()
