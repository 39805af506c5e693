"""Frames between the worker and the agent: 4 bytes of length (big endian), then one JSON document in UTF-8.

Names travel as latin-1 text (every byte is one character), gfids as hex. Standard library only.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

PROTOCOL = 2
MAX_FRAME = 64 << 20
BEAT = {"beat": 1}  # what the agent says so that somebody hears something: the answer to nothing
_LENGTH = struct.Struct(">I")


class BadFrame(Exception):
    """The peer does not speak this protocol (a shell's greeting, a torn stream)."""


class TornFrame(BadFrame):
    """The stream ended inside a message."""


def encode(message: Any) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            break
        data += more
    return data


def read_frame(stream: BinaryIO) -> Any | None:
    """The next message, None at the end of the stream; BadFrame if it is not one of ours."""
    head = _read_exactly(stream, 4)
    if not head:
        return None
    if len(head) < 4:
        raise TornFrame(f"stream ended inside a frame, after {head!r}")
    size = _LENGTH.unpack(head)[0]
    if size > MAX_FRAME:
        raise BadFrame(f"not a gsync frame: {head + stream.read(200)!r}")
    body = _read_exactly(stream, size)
    if len(body) < size:
        raise TornFrame("stream ended inside a frame")
    try:
        return json.loads(body)
    except ValueError as exc:
        raise BadFrame(f"not a gsync frame: {exc}") from exc
