"""The lease between nodes: epochs, who may have one, and processes that are killed and frozen while they contend."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.clock import Clock
from gsync.base.errors import Faulty
from gsync.engine.lease import Claim, Claims, LocalLease, MetaLease
from lab import REPOSITORY
from lab.syncs import Syncs

INTERVAL = 1000.0  # no beat comes by itself while a test runs


class NodeClock:
    """One node's; it stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: Callable[[], object] = lambda: None  # done when somebody looks at it

    def __call__(self) -> float:
        self.asked()
        return self.now


class Node:
    """A lease whose thread finds nothing to do unless a test says so."""

    def __init__(self, folder: Path, name: str, interval: float = INTERVAL, **more: object) -> None:
        self.clock = NodeClock()
        self.lease = MetaLease(str(folder), interval, name, clock=Clock(boottime=self.clock),
                               **more)  # type: ignore[arg-type]

    def beat(self) -> None:
        self.lease.beat()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(name: str, **more: float) -> Node:
        made.append(Node(tmp_path / "subvol_0.lock", name, **more))
        return made[-1]

    yield make
    for each in made:
        each.lease.close()


def test_the_local_lease_counts(tmp_path: Path) -> None:
    assert [LocalLease(str(tmp_path / "epoch")).take() for _ in range(3)] == [1, 2, 3]


def test_the_first_one_has_it_and_the_other_does_not(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    assert a.lease.take() == 1 and a.lease.held()
    assert b.lease.take() is None and not b.lease.held()


def test_what_is_given_up_is_taken_at_once_by_another_and_later_by_the_same(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    assert a.lease.take() == 1
    a.lease.release()
    assert not a.lease.held()
    assert a.lease.take() is None  # the others come first
    assert b.lease.take() == 2
    b.lease.release()
    a.clock.now += 2 * INTERVAL
    assert a.lease.take() == 3


def test_a_holder_that_beats_keeps_it(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    a.lease.take()
    for _ in range(8):
        assert b.lease.take() is None
        a.clock.now += INTERVAL / 2
        b.clock.now += INTERVAL / 2
        a.beat()
    assert a.lease.held()


def test_a_silent_holder_loses_it_before_another_one_takes_it(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    a.lease.take()
    assert b.lease.take() is None
    b.clock.now += INTERVAL * 1.2
    assert b.lease.take() is None
    a.clock.now += INTERVAL
    assert not a.lease.held()
    b.clock.now += INTERVAL * 0.1
    assert b.lease.take() == 2


def test_a_superseded_holder_sees_it_at_its_next_beat(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    a.lease.take()
    b.lease.take()
    b.clock.now += 2 * INTERVAL
    assert b.lease.take() == 2
    assert a.lease.held()  # no time has passed for it: the agent is what refuses its commits now
    a.beat()
    assert not a.lease.held()
    assert a.lease.take() is None


def test_a_holder_that_was_late_takes_it_anew_if_nobody_else_did(node: Callable[..., Node]) -> None:
    a = node("a")
    assert a.lease.take() == 1
    a.clock.now += INTERVAL
    a.beat()  # too late: another one may have begun to take it
    assert not a.lease.held()
    assert a.lease.take() == 2 and a.lease.held()


def test_others_hear_of_the_stime(node: Callable[..., Node]) -> None:
    a, b, c = node("a"), node("b"), node("c")
    a.lease.take()
    a.lease.committed(77)
    a.beat()
    b.lease.take()
    assert b.lease.beside() == 77
    a.lease.release()
    assert b.lease.take() == 2
    c.lease.take()
    assert c.lease.beside() == 77


def test_an_epoch_is_never_taken_twice_however_late_somebody_acts(tmp_path: Path, node: Callable[..., Node]) -> None:
    late, folder = Claims(str(tmp_path / "subvol_0.lock")), tmp_path / "subvol_0.lock"
    with late.open(make=True) as fd:
        youngest, _ = late.youngest(fd)  # and then it is frozen
        for name in "abc":
            each = node(name)
            each.lease.take()
            each.beat()
            each.lease.release()
        assert [path.name for path in folder.iterdir()] == ["epoch.3"]
        assert not late.make(fd, Claim(youngest + 1, "late", 1, 1, "t"))
    assert [path.name for path in folder.iterdir()] == ["epoch.3"]


def test_whoever_looked_before_an_epoch_was_taken_does_not_take_it_too(tmp_path: Path, node: Callable[..., Node]
                                                                      ) -> None:
    folder = tmp_path / "subvol_0.lock"
    late = Claims(str(folder))
    with late.open(make=True) as fd:
        youngest, _ = late.youngest(fd)
        a = node("a")
        assert a.lease.take() == youngest + 1
        said = (folder / "epoch.1").read_bytes()
        assert not late.make(fd, Claim(youngest + 1, "late", 1, 1, "t"))
    assert (folder / "epoch.1").read_bytes() == said
    a.beat()
    assert a.lease.held()


def test_a_claim_that_was_overtaken_while_it_was_made_does_not_count(tmp_path: Path) -> None:
    """Whoever saw an older listing makes an epoch that nobody has, but it is not the youngest any more."""
    folder = tmp_path / "subvol_0.lock"
    late = Claims(str(folder))
    with late.open(make=True) as fd:
        (folder / "epoch.5").write_bytes(Claim(5, "other", 1, 1, "o").to_bytes())
        assert not late.make(fd, Claim(4, "late", 1, 1, "t"))
    assert [path.name for path in folder.iterdir()] == ["epoch.5"]


def test_of_two_that_saw_it_free_the_one_whose_claim_was_second_does_not_have_it(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    took: list[int | None] = []

    def a_is_faster() -> None:
        b.clock.asked = lambda: None
        took.append(a.lease.take())

    b.clock.asked = a_is_faster  # b has looked who has it, and now looks at its clock
    assert b.lease.take() is None
    assert (took, a.lease.held(), b.lease.held()) == ([1], True, False)


def test_a_claim_is_durable_and_so_is_its_name_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                ) -> None:
    claims = Claims(str(tmp_path / "subvol_0.lock"))
    with claims.open(make=True) as fd:
        syncs = Syncs(monkeypatch)
        assert claims.make(fd, Claim(1, "a", 1, 1, "t"))
    assert syncs.calls == [("fsync", "epoch.1"), ("fsync", "subvol_0.lock")]


def test_a_holder_beats_by_itself(tmp_path: Path, node: Callable[..., Node]) -> None:
    a = node("a", interval=0.4)  # its clock stands still, so no beat is late
    assert a.lease.take() == 1
    end = time.monotonic() + 60
    while (claim := Claim.parse((tmp_path / "subvol_0.lock" / "epoch.1").read_bytes())) is None or claim.beats < 3:
        assert time.monotonic() < end, "nobody renews it"
        time.sleep(0.01)


def test_beats_leave_nothing_open(node: Callable[..., Node]) -> None:
    a = node("a")
    a.lease.take()
    a.beat()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        a.beat()
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_that_are_no_claims_keep_nobody_out(tmp_path: Path, node: Callable[..., Node]) -> None:
    folder = tmp_path / "subvol_0.lock"
    folder.mkdir()
    (folder / "epoch.7").write_bytes(b"")
    (folder / "epoch.x").write_bytes(b"")
    a = node("a")
    assert a.lease.take() is None  # whoever makes it may be about to write it
    a.clock.now += 2 * INTERVAL
    assert a.lease.take() == 8


def test_a_meta_volume_that_is_not_there_is_faulty(node: Callable[..., Node]) -> None:
    def check() -> None:
        raise Faulty("meta volume /m is not mounted")

    with pytest.raises(Faulty, match="not mounted"):
        node("a", check=check).lease.take()


def test_a_holder_whose_folder_goes_away_or_changes_has_it_no_longer(tmp_path: Path, node: Callable[..., Node]) -> None:
    a, folder = node("a"), tmp_path / "subvol_0.lock"
    a.lease.take()
    folder.rename(tmp_path / "away")
    a.clock.now += INTERVAL / 2
    a.beat()
    folder.mkdir()
    (folder / "epoch.1").write_bytes((tmp_path / "away" / "epoch.1").read_bytes())  # another one with the same content
    a.beat()
    assert a.lease.held()
    a.clock.now += INTERVAL / 2
    assert not a.lease.held()


def test_a_meta_volume_that_hangs_stops_the_holder_and_keeps_nobody_waiting(
        tmp_path: Path, node: Callable[..., Node]) -> None:
    a = node("a", interval=0.1, answer=0.1)
    a.lease.take()
    os.mkfifo(tmp_path / "fifo")  # to open it never returns, as a call into a dead file system; the thread is a daemon
    (tmp_path / "fifo").rename(tmp_path / "subvol_0.lock" / "epoch.1")
    a.beat()
    a.clock.now += 0.1
    assert not a.lease.held()
    a.lease.release()
    with pytest.raises(Faulty, match="does not answer"):
        a.lease.take()


# processes

RACER = """
import sys
from gsync.engine.lease import MetaLease

lease = MetaLease(sys.argv[1], 3600, "node" + sys.argv[2])
for word in sys.stdin:
    if word == "take\\n":
        print(lease.take() or 0, flush=True)
    else:
        lease.release()
        print("released", flush=True)
"""


def test_of_several_processes_that_take_it_at_once_one_gets_it(tmp_path: Path) -> None:
    """As often as it is given up. The one that gave it up leaves it to the others."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path / "lock"), str(n)], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1) for n in range(4)]

    def tell(racer: subprocess.Popen[str], word: str) -> None:
        assert racer.stdin is not None
        racer.stdin.write(word + "\n")

    def answer(racer: subprocess.Popen[str]) -> str:
        assert racer.stdout is not None
        return racer.stdout.readline().strip()

    try:
        for epoch in range(1, 5):  # each one once: who gave it up waits for the interval
            for racer in racers:
                tell(racer, "take")
            epochs = [int(answer(racer)) for racer in racers]
            assert sorted(epochs) == [0, 0, 0, epoch]
            winner = racers[epochs.index(epoch)]
            tell(winner, "release")
            assert answer(winner) == "released"
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


CONTENDER = """
import os, random, sys, time
from gsync.engine.lease import MetaLease

folder, log, seed, interval = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), *map(
    float, sys.argv[3:])
rng = random.Random(seed)
now = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
say = lambda word, epoch, at: os.write(log, b"%s %d %.6f\\n" % (word, epoch, at))
lease = MetaLease(folder, interval, "node%d" % os.getpid())
while True:
    epoch = lease.take()
    if epoch is None:
        time.sleep(interval / 8)
        continue
    say(b"took", epoch, now())
    until = now() + rng.uniform(0, 8 * interval)
    while True:
        at = now()
        if not lease.held():
            break
        say(b"held", epoch, at)
        if at > until:
            lease.release()
            assert not lease.held()
            break
        time.sleep(interval / 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_contenders_that_are_killed_and_frozen_at_random(tmp_path: Path, seed: int) -> None:
    """No epoch has two holders, and no holder believes in its epoch for longer than the interval after the next one
    was taken."""
    interval, rng = 0.2, random.Random(seed)
    log, folder = tmp_path / "log", tmp_path / "subvol_0.lock"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        argv = [sys.executable, "-c", CONTENDER, str(folder), str(log), str(rng.random()), str(interval)]
        processes.append(subprocess.Popen(argv, env=env))

    def lines() -> list[tuple[str, int, float]]:
        with contextlib.suppress(FileNotFoundError):
            return [(word, int(epoch), float(at)) for word, epoch, at in map(str.split, log.read_text().splitlines())]
        return []

    try:
        for _ in range(4):
            start()
        end = time.monotonic() + 60
        acts = 0
        while acts < 25 or len({epoch for word, epoch, _ in lines() if word == "took"}) < 12:
            assert time.monotonic() < end, "nobody takes over"
            victim = rng.choice(processes)
            number = rng.choice([signal.SIGSTOP, signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL])
            victim.send_signal(number)
            acts += 1
            if number is signal.SIGKILL:
                victim.wait()
                processes.remove(victim)
                start()
            time.sleep(rng.uniform(0, interval))
        for process in processes:
            process.send_signal(signal.SIGCONT)
            assert process.poll() is None
        known = len(lines())
        while not any(word == "held" for word, _, _ in lines()[known:]):  # somebody has it in the end
            assert time.monotonic() < end, "nobody has it in the end"
            time.sleep(interval)
    finally:
        for process in processes:
            process.kill()
            process.wait()

    took: dict[int, float] = {}
    for word, epoch, at in lines():
        if word == "took":
            assert epoch not in took, f"epoch {epoch} was taken twice"
            took[epoch] = at
    for word, epoch, at in lines():
        if word == "held":
            later = [taken for other, taken in took.items() if other > epoch]
            assert at <= min(later, default=at) + interval, f"epoch {epoch} still held long after the next was taken"
