"""The life of a worker: which state follows which, what is shown of it, and what it holds meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, GsyncError, SlaveError, Transient
from gsync.base.model import NS, ROOT_GFID
from gsync.engine.ledger import Failure
from gsync.engine.snapshot import Crawl
from gsync.engine.states import Order
from gsync.link.protocol import Busy
from gsync.recorder.status import FAULTY, RecorderStatus
from lab.model.plain import START, Plain

RECORDER_FAULTY = RecorderStatus(FAULTY, "the root is away", gaps=1, unbroken_since=0, watching_since=0)

RECORDER_BEGINS = RecorderStatus()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Callable[..., Plain]]:
    made: list[Plain] = []

    def make(**more: object) -> Plain:
        made.append(Plain(tmp_path, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def stops_after(p: Plain, seconds: float) -> None:
    def waiting() -> None:
        if p.time.ns >= START + seconds * NS:
            p.order = Order.STOP

    p.time.waiting = waiting


def test_it_connects_follows_and_stops(plain: Callable[..., Plain]) -> None:
    p = plain()
    stops_after(p, 60)
    assert p.worker.run() == 0
    assert p.states == ["Initializing", "Active", "Stopped"]
    assert p.shown[-1].pace.crawl is Crawl.CHANGELOG and p.shown[-1].pace.in_step
    assert p.calls[0] == "connect" and p.calls[-1] == "bye"


def test_the_stime_follows_the_clock_on_a_quiet_tree(plain: Callable[..., Plain]) -> None:
    p = plain()
    stops_after(p, 60)
    p.worker.run()
    assert p.kept == sorted(p.kept) and p.kept[-1] > START + 45 * NS
    assert p.client.stime == p.kept[-1] == p.shown[-1].last_synced


def test_while_another_worker_has_the_lease_it_is_passive_and_keeps_up(plain: Callable[..., Plain]) -> None:
    p = plain()
    p.lease.others, p.lease.stime_beside = 8, START + 7
    stops_after(p, 60)
    p.worker.run()
    assert p.states == ["Passive", "Initializing", "Active", "Stopped"]
    assert p.calls[:9] == ["stand by"] * 8 + ["connect"]
    assert p.kept[0] == START + 7


def test_a_worker_that_loses_its_lease_commits_nothing_and_claims_it_again(plain: Callable[..., Plain]) -> None:
    p = plain()

    def connecting() -> None:
        p.lease.lost = p.lease.epoch == 1
        p.lease.others = 1

    p.connecting = connecting
    stops_after(p, 30)
    p.worker.run()
    assert p.calls[:4] == ["connect", "bye", "stand by", "connect"]
    assert p.shown[-1].epoch == 2


def test_the_lease_is_given_up_whatever_ends_it(plain: Callable[..., Plain]) -> None:
    p = plain()

    def connecting() -> None:
        raise SlaveError("refused")

    p.connecting = connecting
    with pytest.raises(SlaveError):
        p.worker.run()
    assert p.lease.releases
    assert (p.shown[-1].state.value, p.shown[-1].reason) == ("Faulty", "refused")


def test_pauses_grow_until_a_batch_gets_through(plain: Callable[..., Plain]) -> None:
    """A line that breaks now and then is not taken for one that is dead."""
    p = plain()
    connections = iter(["good", "broken", "broken", "broken", "good", "broken", "stop"])
    rests: list[float] = []

    def cut() -> None:
        if "commit" in p.calls:  # a batch got through
            p.calls.clear()
            raise Transient("the line is cut")

    def connecting() -> None:
        rests.append(sum(p.time.waits))
        p.time.waits.clear()
        p.client.check = cut
        what = next(connections)
        if what == "broken":
            raise Transient("no route")
        if what == "stop":
            p.stop()

    p.connecting = connecting
    assert p.worker.run() == 0
    assert rests == [0, 1, 2, 4, 8, 1, 2]


def test_a_slave_that_was_never_there_is_not_waited_for(plain: Callable[..., Plain]) -> None:
    p = plain()

    def connecting() -> None:
        raise Transient("no route")

    p.connecting = connecting
    with pytest.raises(Transient):
        p.worker.run()
    assert p.time.waits == []


@pytest.mark.parametrize(("error", "waited"), [(Transient("no route"), 15.0), (SlaveError("refused"), 0.0)])
def test_a_run_that_is_to_end_gives_up_after_a_while(plain: Callable[..., Plain], error: GsyncError, waited: float
                                                     ) -> None:
    p = plain(once=START + 10**9 * NS)

    def connecting() -> None:
        if p.calls.count("connect") > 1:
            raise error

    def check() -> None:
        raise error

    p.connecting, p.client.check = connecting, check
    with pytest.raises(type(error)):
        p.worker.run()
    assert sum(p.time.waits) == waited


def test_once_ends_when_the_stime_has_passed_it(plain: Callable[..., Plain]) -> None:
    p = plain(once=START + 5 * NS)
    assert p.worker.run() == 0
    assert p.client.stime >= START + 5 * NS


def test_once_ends_with_1_if_there_are_failures(plain: Callable[..., Plain]) -> None:
    p = plain(once=START + 5 * NS)
    p.ledger.record(Failure("name", None, (ROOT_GFID, b"x"), b"x", 13, "denied"))
    assert p.worker.run() == 1


@pytest.mark.parametrize("said", [None, RECORDER_BEGINS], ids=["never began", "does not watch yet"])
def test_until_the_recorder_watches_nothing_is_looked_at(plain: Callable[..., Plain], said: RecorderStatus | None
                                                         ) -> None:
    """invariant 1: what changes during a walk that nobody watches is seen by nobody."""
    p = plain()
    p.recorder.said = said
    stops_after(p, 30)
    p.worker.run()
    assert p.states == ["Initializing", "Active", "Stopped"]
    assert (p.calls, p.kept, p.shown[-1].pace.crawl) == (["connect", "bye"], [], Crawl.NONE)


def test_a_faulty_recorder_is_shown_and_the_connection_stays(plain: Callable[..., Plain]) -> None:
    p = plain()
    good = p.recorder.said

    def waiting() -> None:
        seconds = (p.time.ns - START) // NS
        p.recorder.said = RECORDER_FAULTY if 10 < seconds < 20 else good
        if seconds > 30:
            p.order = Order.STOP

    p.time.waiting = waiting
    p.worker.run()
    assert p.states == ["Initializing", "Active", "Faulty", "Active", "Stopped"]
    assert p.calls.count("connect") == 1
    assert {s.reason for s in p.shown if s.state == "Faulty"} == {"the root is away"}


def test_a_faulty_recorder_ends_a_run_that_is_to_end(plain: Callable[..., Plain]) -> None:
    p = plain(once=START + 5 * NS)
    p.connecting = lambda: p.time.wait(1)  # what it says is not what an earlier one left behind
    p.recorder.said = RECORDER_FAULTY
    with pytest.raises(Faulty, match="the root is away"):
        p.worker.run()


def test_one_of_several_nodes_leaves_the_lease_to_others_while_its_recorder_is_faulty(plain: Callable[..., Plain]
                                                                                      ) -> None:
    p = plain(stands_down=True)
    good = p.recorder.said

    def waiting() -> None:
        seconds = (p.time.ns - START) // NS
        p.recorder.said = RECORDER_FAULTY if 10 < seconds < 20 else good
        if seconds > 30:
            p.order = Order.STOP

    p.time.waiting = waiting
    p.worker.run()
    assert p.states == ["Initializing", "Active", "Faulty", "Initializing", "Active", "Stopped"]
    assert p.lease.epoch == 2


def test_paused_it_keeps_its_connection_and_sends_nothing(plain: Callable[..., Plain]) -> None:
    p = plain()
    during: list[int] = []

    def waiting() -> None:
        seconds = (p.time.ns - START) // NS
        p.order = Order.PAUSE if 10 < seconds < 40 else Order.STOP if seconds > 60 else Order.RUN
        if 11 < seconds < 40:
            during.append(len(p.calls))

    p.time.waiting = waiting
    p.worker.run()
    assert p.states == ["Initializing", "Active", "Paused", "Active", "Stopped"]
    assert len(set(during)) == 1
    assert p.calls.count("connect") == 1


def test_a_worker_that_loses_its_lease_while_it_is_paused_lets_go_of_the_slave(plain: Callable[..., Plain]) -> None:
    p = plain()
    let_go: list[int] = []

    def waiting() -> None:
        seconds = (p.time.ns - START) // NS
        p.order = Order.PAUSE if 10 < seconds < 40 else Order.STOP if seconds > 60 else Order.RUN
        p.lease.lost = p.lease.epoch == 1 and seconds > 20
        if "bye" in p.calls and not let_go:
            let_go.append(seconds)

    p.time.waiting = waiting
    p.worker.run()
    assert 20 < let_go[0] < 40


def test_a_worker_that_is_paused_can_be_stopped(plain: Callable[..., Plain]) -> None:
    p = plain()

    def waiting() -> None:
        p.order = Order.PAUSE if p.time.ns < START + 30 * NS else Order.STOP

    p.time.waiting = waiting
    assert p.worker.run() == 0
    assert p.states == ["Initializing", "Active", "Paused", "Stopped"]


def test_in_step_one_that_shares_the_slave_leaves_it_to_others(plain: Callable[..., Plain]) -> None:
    p = plain(shares=True)
    stops_after(p, 45)
    p.worker.run()
    assert p.states == ["Initializing", "Active", "Stopped"]
    assert p.calls.count("connect") == p.calls.count("bye") > 1
    assert p.calls.count("connect") <= p.calls.count("commit")  # it comes back only when there is work


def test_one_that_shares_the_slave_waits_for_its_turn(plain: Callable[..., Plain]) -> None:
    p = plain(shares=True)

    def connecting() -> None:
        if p.calls.count("connect") < 4:
            raise Busy("another brick is at it")

    p.connecting = connecting
    stops_after(p, 5)
    p.worker.run()
    assert p.states == ["Initializing", "Active", "Stopped"]
    assert p.lease.epoch == 1


def test_the_slave_that_is_busy_for_another_session_is_an_error(plain: Callable[..., Plain]) -> None:
    p = plain()

    def connecting() -> None:
        raise Busy("another session is at it")

    p.connecting = connecting
    with pytest.raises(Busy):
        p.worker.run()
