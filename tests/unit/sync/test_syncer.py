"""The Syncer's promise: one result per request, and a broken engine ends everything with its error."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from gsync.base.errors import Stopped, Transient
from gsync.sync.engine import Flow, Report
from gsync.sync.postbox import FileRequest, Result
from gsync.sync.syncer import Syncer


def request(number: int) -> FileRequest:
    return FileRequest(number.to_bytes(16, "big"), "N", bytes(16), b"", 1)


class HoldsBack:
    """An engine that reports a box only when the next one comes, or when flushed."""

    direct = True

    def __init__(self, flow: Flow) -> None:
        self.held: list[FileRequest] = []
        self.closed = False

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        self.flush(report)
        self.held = list(box)

    def flush(self, report: Report) -> None:
        if self.held:
            report([self.result(r) for r in self.held])
            self.held = []

    def result(self, r: FileRequest) -> Result:
        bad = r.gfid[-1] == 13
        return Result(r, errno.EIO if bad else 0, "bad" if bad else "", 1, False)

    def abort(self) -> None:
        """Nothing ever blocks."""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def start() -> Iterator[Callable[..., Syncer]]:
    running: list[Syncer] = []

    def start(make: Callable[[Flow], HoldsBack], jobs: int = 2) -> Syncer:
        running.append(Syncer(jobs, make, Flow()))
        return running[-1]

    yield start
    for syncer in running:
        syncer.close()


def collect(syncer: Syncer, count: int) -> list[Result]:
    results: list[Result] = []
    while len(results) < count:
        results += syncer.results(wait=True)
    return results


def test_every_request_gets_one_result(start: Callable[..., Syncer]) -> None:
    syncer = start(HoldsBack)
    sent = [request(i) for i in range(10_000)]
    for r in sent:
        syncer.send(r)
    results = collect(syncer, len(sent))
    assert sorted(r.request for r in results) == sent
    bad = sum(1 for r in sent if r.gfid[-1] == 13)
    assert (syncer.files, syncer.errors) == (len(sent) - bad, bad)
    assert syncer.results(wait=False) == []


def test_what_an_engine_holds_back_comes_when_nothing_follows(start: Callable[..., Syncer]) -> None:
    syncer = start(HoldsBack, jobs=1)
    syncer.send(request(1))
    assert collect(syncer, 1)[0].request == request(1)


class Breaks(HoldsBack):
    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        if any(r.gfid[-1] == 99 for r in box):
            raise Transient("the link broke")
        super().move(box, report)


def test_a_broken_link_ends_send_and_results_with_its_error(start: Callable[..., Syncer]) -> None:
    syncer = start(Breaks)
    syncer.send(request(99))
    with pytest.raises(Transient, match="the link broke"):
        collect(syncer, 1)
    with pytest.raises(Transient, match="the link broke"):
        syncer.send(request(1))


def test_results_that_came_before_the_link_broke_are_told_first(start: Callable[..., Syncer]) -> None:
    syncer = start(Breaks, jobs=1)
    syncer.send(request(1))
    first = collect(syncer, 1)
    syncer.send(request(99))
    with pytest.raises(Transient):
        collect(syncer, 1)
    assert [r.request for r in first] == [request(1)]


def test_an_engine_that_cannot_be_made_is_told(start: Callable[..., Syncer]) -> None:
    def refuse(flow: Flow) -> HoldsBack:
        raise Transient("not reachable")

    with pytest.raises(Transient, match="not reachable"):
        collect(start(refuse), 1)


class Blocks(HoldsBack):
    """Hangs until it is aborted, or until the flow is stopped."""

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        self.inside, self.aborted = threading.Event(), threading.Event()

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        self.inside.set()
        self.aborted.wait()
        raise Stopped

    def abort(self) -> None:
        self.aborted.set()


def test_close_breaks_off_what_is_under_way_and_closes_the_engines() -> None:
    made: list[Blocks] = []

    def make(flow: Flow) -> Blocks:
        made.append(Blocks(flow))
        return made[-1]

    syncer = Syncer(1, make, Flow())
    syncer.send(request(1))
    while not made:
        threading.Event().wait(0.001)
    made[0].inside.wait()
    syncer.close()
    assert made[0].closed


def test_a_bug_in_an_engine_comes_out_of_results(start: Callable[..., Syncer]) -> None:
    class Buggy(HoldsBack):
        def move(self, box: Sequence[FileRequest], report: Report) -> None:
            raise ZeroDivisionError("a bug")

    syncer = start(Buggy)
    syncer.send(request(1))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        collect(syncer, 1)
