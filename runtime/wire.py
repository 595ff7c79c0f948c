"""The frames between gateway, zygote and instance, and descriptors passed beside them.

A frame is ``<u32 header length><u32 body length><header: JSON object><body: bytes>``, little-endian,
over a connected ``AF_UNIX`` stream socket. The header's ``kind`` says what it is; payloads travel
raw in the body, cut by the lengths in ``header["sizes"]``. ``call`` is a call's place in the running
batch, times are milliseconds where they do not say otherwise. This file only carries them:

======================  ================================================================================
gateway -> instance     ``batch`` {calls: [{id, timeout_s; origin or head}], busy, sizes}: busy is how many
                        instances of the function compute now; ``cancel`` {call}, ``stop``, ``hook`` {moment}
                        (what the author wants done before a snapshot or after a restore); ``lend``
                        {slot, by, with} (a platform's connection, which comes with it as a
                        descriptor: see ``runtime.feed``), ``recall`` (of all that was lent)
instance -> gateway     ``ready`` {report, form, reason}, ``failed`` {problem}, ``began`` (predict runs from now
                        on; only of a function with retry=False), ``item`` {call, sizes} (one chunk of a
                        stream), ``result`` {call, predict_ms; problem, or else sizes, not after items; head,
                        of a reply}, ``again`` (predict runs anew on a part of the batch), ``settled``
                        {eager_calls, if any}, ``hooked`` {problem, if it failed}; ``fed`` {slots,
                        sent, runs, sizes} (calls that slots have brought, and those of slots which run from now on:
                        their place is -slot, and their ``result`` says ``answered``, whether with a poll,
                        ``read`` and ``queue_ms``, where the platform was), ``recalled`` {slots} (they poll no
                        more), ``refused`` {slot, status, said}, ``handed`` {slot, polled, sizes}
gateway -> base         ``import`` {modules}, once, before anything else
gateway -> zygote       ``fork`` {ticket, role, spec}, the child's socket comes with it as a descriptor
zygote -> gateway       ``up`` {report}, ``failed`` {problem}, ``unforkable`` {reason, rehearsed}, then
                        ``forked`` {ticket, pid}, ``refused`` {ticket, problem}, ``exit`` {pid, status}
======================  ================================================================================
"""

import json
import os
import socket
import struct
from typing import Any, NamedTuple

HEAD = struct.Struct("<II")
MAX_HEADER_NBYTES = 16 << 20
MAX_DESCRIPTORS = 4
READ_NBYTES = 1 << 18
_JSON = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each frame
_HEADERS = json.JSONDecoder()


class Frame(NamedTuple):
    header: dict[str, Any]
    body: bytes

    @property
    def kind(self) -> str:
        return str(self.header["kind"])

    def parts(self) -> list[bytes]:
        """The body cut by ``header["sizes"]`` (bytes each)."""
        parts, start = [], 0
        for size in self.header.get("sizes", ()):
            parts.append(self.body[start : start + size])
            start += size
        return parts


def encode(header: dict[str, Any], *parts: bytes) -> bytes:
    """One frame as bytes; where there are parts, ``sizes`` says how to cut the body again."""
    if parts:
        header = {**header, "sizes": [len(part) for part in parts]}
    head = _JSON.encode(header).encode()
    return b"".join((HEAD.pack(len(head), sum(map(len, parts))), head, *parts))


class Decoder:
    """Cuts a byte stream into frames: ``feed`` what arrived, iterate what is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Frames completed by ``data``. Raises ValueError on a header that is no JSON object."""
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= HEAD.size:
            head_nbytes, body_nbytes = HEAD.unpack_from(self._buffer, start)
            if head_nbytes > MAX_HEADER_NBYTES:
                raise ValueError(f"frame header of {head_nbytes} bytes; the stream is out of step")
            end = start + HEAD.size + head_nbytes + body_nbytes
            if len(self._buffer) < end:
                break
            middle = start + HEAD.size + head_nbytes
            header = _HEADERS.decode(self._buffer[start + HEAD.size : middle].decode())
            frames.append(Frame(header, bytes(self._buffer[middle:end])))
            start = end
        del self._buffer[:start]
        return frames


class Connection:
    """The blocking end of a socket, as zygotes and instances use it.

    ``receive`` returns one frame, or None at the end of the stream (the other side is gone).
    Descriptors that came with a frame lie in ``descriptors`` until taken; they are not inheritable.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.descriptors: list[int] = []
        self._decoder = Decoder()
        self._ready: list[Frame] = []

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(
        self, header: dict[str, Any], *parts: bytes, descriptors: list[int] | None = None
    ) -> None:
        data = encode(header, *parts)
        if descriptors:
            sent = socket.send_fds(self.socket, [data], descriptors)
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def receive(self) -> Frame | None:
        while not self._ready:
            data, descriptors, _flags, _address = socket.recv_fds(
                self.socket, READ_NBYTES, MAX_DESCRIPTORS
            )
            for fd in descriptors:
                os.set_inheritable(fd, False)
            self.descriptors += descriptors
            if not data:
                return None
            self._ready = self._decoder.feed(data)
        return self._ready.pop(0)

    def pending(self) -> bool:
        """Whether ``receive`` would return a frame without waiting for the socket."""
        return bool(self._ready)
