"""The link that a passive worker keeps ready: made beside it, handed over whole, and never left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from gsync.base.errors import Transient
from gsync.service.spare import Spare


class Link:
    def __init__(self) -> None:
        self.stands, self.closed = True, threading.Event()

    def alive(self) -> bool:
        return self.stands

    def close(self) -> None:
        self.closed.set()


class Maker:
    """Makes links, each when it is let; an error if that is what is set."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.made: list[Link] = []
        self.error: Exception | None = None

    def __call__(self) -> Link:
        self.asked.release()
        self.let.acquire()
        if self.error is not None:
            raise self.error
        self.made.append(Link())
        return self.made[-1]


@pytest.fixture
def maker() -> Iterator[Maker]:
    maker = Maker()
    yield maker
    maker.let.release(1000)
    settled()


@pytest.fixture
def spare(maker: Maker) -> Spare:
    return Spare(maker)  # type: ignore[arg-type]


def settled() -> None:
    """Until no spare link is being made."""
    for thread in threading.enumerate():
        if thread.name == "spare link":
            thread.join(60)
            assert not thread.is_alive()


def soon(spare: Spare) -> Link:
    end = time.monotonic() + 60
    while (link := spare.take()) is None:
        assert time.monotonic() < end
        spare.prepare()
        time.sleep(0.001)
    return link  # type: ignore[return-value]


def test_nobody_waits_for_a_slave_that_does_not_answer(spare: Spare, maker: Maker) -> None:
    spare.prepare()
    assert maker.asked.acquire(timeout=60)
    spare.prepare()
    assert spare.take() is None
    assert not maker.asked.acquire(blocking=False)
    spare.close()


def test_one_that_comes_when_it_is_not_wanted_any_more_is_closed(spare: Spare, maker: Maker) -> None:
    spare.prepare()
    assert maker.asked.acquire(timeout=60)
    spare.close()
    maker.let.release()
    end = time.monotonic() + 60
    while not maker.made:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert maker.made[0].closed.wait(60)
    assert spare.take() is None


def test_it_is_handed_over_once_and_made_anew_when_it_is_dead(spare: Spare, maker: Maker) -> None:
    for _ in range(20):
        maker.let.release()
    first = soon(spare)
    second = soon(spare)
    assert first is not second and not first.closed.is_set()
    spare.prepare()
    settled()
    kept = maker.made[-1]
    kept.stands = False
    assert spare.take() is None
    assert kept.closed.is_set()


def test_after_a_failure_there_is_a_pause(maker: Maker) -> None:
    now = 0.0
    spare = Spare(maker, pause=5.0, clock=lambda: now)  # type: ignore[arg-type]
    maker.error = Transient("slave away: no answer")
    maker.let.release()
    spare.prepare()
    settled()
    assert maker.asked.acquire(blocking=False)
    now = 4.9
    spare.prepare()
    settled()
    assert not maker.asked.acquire(blocking=False)
    now = 5.0
    spare.prepare()
    assert maker.asked.acquire(timeout=60)
    maker.let.release()


def test_who_begins_with_it_waits_for_it(spare: Spare, maker: Maker) -> None:
    spare.prepare()
    threading.Timer(0.05, maker.let.release).start()
    taken: object = spare.take(wait=True)
    assert taken is maker.made[0]
    assert spare.take(wait=True) is None


def test_who_waits_for_it_is_told_why_there_is_none(spare: Spare, maker: Maker) -> None:
    maker.error = Transient("slave away: no answer")
    spare.prepare()
    maker.let.release()
    with pytest.raises(Transient, match="no answer"):
        spare.take(wait=True)
    assert spare.take(wait=True) is None
