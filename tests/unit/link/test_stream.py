"""The stream's format: what is encoded is what is decoded, and nonsense is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsync.link import stream
from gsync.link.stream import BadStream, ItemHeader


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=255), st.binary(max_size=3000)), max_size=20))
def test_xattrs_survive(xattrs: list[tuple[bytes, bytes]]) -> None:
    assert stream.decode_xattrs(stream.encode_xattrs(xattrs)) == xattrs


@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_for_xattrs_are_decoded_or_refused(blob: bytes) -> None:
    with suppress(BadStream):
        assert stream.encode_xattrs(stream.decode_xattrs(blob)) == blob


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_list_of_xattrs_is_refused(cut: int) -> None:
    whole = stream.encode_xattrs([(b"user.a", b"value")])
    with pytest.raises(BadStream):
        stream.decode_xattrs(whole[:-cut])


@given(ns=st.integers(-2**62, 2**66))
def test_times_of_any_century_survive(ns: int) -> None:
    head = ItemHeader(1, 0, 0, 0, 0, bytes(16), bytes(16), 0, 0, 0, *divmod(ns, 10**9), *divmod(-ns, 10**9), 5)
    again = ItemHeader._make(stream.HEADER.unpack(stream.HEADER.pack(*head)))
    assert (again.mtime, again.atime) == (ns, -ns)


def test_hello() -> None:
    assert stream.decode_hello(stream.encode_hello(7, "ab12")) == (stream.PROTOCOL, 7, "ab12")


@pytest.mark.parametrize("line", [b"", b"\n", b"{}\n", b"[1]\n", b'{"gsync-stream": "x", "epoch": 1}\n', b"Welcome!\n",
                                  b'{"gsync-stream": 1, "epoch": null}\n', b"\xff\n"])
def test_another_hello_is_refused(line: bytes) -> None:
    with pytest.raises(BadStream):
        stream.decode_hello(line)


def test_the_end_of_a_box_carries_its_number() -> None:
    head = ItemHeader._make(stream.HEADER.unpack(stream.encode_end(12)))
    assert (head.kind, head.size) == (stream.END, 12)
