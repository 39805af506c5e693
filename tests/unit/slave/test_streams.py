"""What a slave remembers of each of the streams of changes, and what is left of it when their number changes."""

from __future__ import annotations

from typing import Any

from gsync.engine.position import Mark
from gsync.link.protocol import stream_of
from gsync.slave.streams import Streams


class Kept(Streams):
    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def of(self, stream: str) -> Kept:
        self.stream = stream
        return self

    def fact(self, key: str) -> Any:
        return self.facts.get(key)

    def set_fact(self, key: str, value: Any) -> None:
        self.facts[key] = value


def test_when_there_are_more_streams_or_fewer_all_is_walked_from_what_all_had() -> None:
    kept = Kept()
    kept.of("").set_standing(10, 10, "me digest", walked=False)
    assert kept.standing() == (10, 10, "me digest")

    assert kept.of("1of2").standing() == (10, None, "reshaped -")
    assert kept.everyones_stime() is None                      # so nothing that was detached is let go
    mark = Mark.parse(kept.standing()[2])
    assert mark is not None and mark.patterns == "-"           # unlike any digest of patterns: the worker walks
    kept.set_standing(20, 20, "one digest", walked=True)
    assert kept.of("0of2").standing() == (20, 20, "one digest")
    kept.set_standing(30, 30, "two digest", walked=False)
    assert kept.everyones_stime() == 20

    # the stime of the time before, when there was one alone, is none any more
    assert kept.of("").standing() == (20, None, "reshaped -")
    kept.set_standing(40, 40, "me digest", walked=True)
    assert kept.standing() == (40, 40, "me digest")
    assert kept.of("0of2").standing() == (40, None, "reshaped -")


def test_a_number_of_streams_that_was_never_complete_is_no_beginning() -> None:
    kept = Kept()
    kept.of("0of2").set_standing(10, 10, "me digest", walked=False)
    assert kept.of("0of3").standing() == (None, None, None)


def test_another_set_of_as_many_streams_is_walked_too() -> None:
    kept = Kept()
    for stream, stime in (("0of2", 10), ("1of2", 20)):
        kept.of(stream).set_standing(stime, stime, "me digest", walked=False)
    other = stream_of("0123456789abcdef-0of2x1a2b3c4d")
    assert kept.of(other).standing() == (10, None, "reshaped -")
    kept.set_standing(30, 30, "me digest", walked=True)
    assert kept.standing() == kept.of("1of2x1a2b3c4d").standing() == (30, 30, "me digest")
    assert kept.of("0of2").standing() == (30, None, "reshaped -")
