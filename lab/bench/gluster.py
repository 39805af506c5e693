"""The workloads on real GlusterFS volumes: gsync beside GlusterFS's own geo-replication, from one master volume with
two copies to a slave volume of one brick each. `scripts/bench gluster`; needs root and glusterfs-server.

Both replay the changes made while they were stopped (history), and follow. The time of a replay runs from the moment
when the worker begins with the history, according to its log, until the slave's brick has everything; then contents are
compared through a mount. CPU time is that of all processes on the contestant's hosts, except the volumes' own.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab.bench.measure import Failed, Result
from lab.bench.workloads import KIB, Bench
from lab.gluster.cluster import ROLLOVER, SLAVE, Cluster, cluster
from lab.gluster.georep import GeoRep
from lab.gluster.site import GlusterSite
from lab.hosts import Host, sshd_on, wait_until

PEER = "gsyncd"
PATIENCE = 240.0
LAG_PATIENCE = 20.0
_PEERS = "pvol"  # the slave volume of the peer
_DAEMONS = ("glusterd", "glusterfsd")  # the volumes' own processes
_WRITERS = 4
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Side:
    """A contestant: how to start and stop it; its slave, as a mount and as the brick below; its log, and the line there
    that tells when its worker begins with the history."""

    name: str
    start: Callable[[], None]
    stop: Callable[[], None]
    slave: Path
    brick: Path
    log: Callable[[], str]
    begins: re.Pattern[str]

    def history_begun(self, after: float) -> float:
        """The time after `after` when its worker began to replay history (both in seconds since the epoch)."""
        found: list[float] = []

        def has() -> bool:
            times = (datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
                     for match in self.begins.finditer(self.log()))
            found[:] = [at for at in times if at > after]
            return bool(found)

        self.wait("it replays history", has)
        return found[0]

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        try:
            wait_until(what, condition, seconds)
        except AssertionError as exc:
            raise Failed(f"{self.name}: {exc}") from None


class CpuWatch:
    """CPU seconds of all processes on the hosts since it was made, except the volumes' daemons."""

    def __init__(self, hosts: list[Host]) -> None:
        self._spaces = {os.readlink(f"/proc/{host.pid}/ns/pid") for host in hosts}
        self._before = self._times()

    def seconds(self) -> float:
        return sum(ticks - self._before.get(pid, 0) for pid, ticks in self._times().items()) / _TICKS

    def _times(self) -> dict[int, int]:
        """Ticks of each process, including those of the children that it has waited for."""
        found = {}
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") in self._spaces:
                    name, _, rest = Path("/proc", entry, "stat").read_text().partition("(")[2].rpartition(")")
                    if name not in _DAEMONS:
                        found[int(entry)] = sum(int(field) for field in rest.split()[11:15])
        return found


def _sides(site: Cluster, folder: Path, stack: contextlib.ExitStack) -> list[Side]:
    config = stack.enter_context(sshd_on(site["s1"], folder / "sshd"))
    gsync = GlusterSite(folder, site, config, to_volume=True)
    stack.callback(gsync.close)
    peers_slave = site.make_slave(_PEERS)
    peer = GeoRep(site, _PEERS)
    stack.callback(peer.stop)

    def stop() -> None:
        gsync.stop()
        gsync.close()

    def log() -> str:
        return "".join(path.read_text(errors="replace") for path in folder.glob("gsync-*/home/sessions/*/brick_*/log"))

    return [
        Side(PEER, peer.start, peer.stop, peers_slave, site.bricks(_PEERS)[0][1], peer.log,
             re.compile(r"^\[(\S+ \S+)\] I .*starting history crawl", re.MULTILINE)),
        Side("gsync", gsync.start, stop, site.slave, site.bricks(SLAVE)[0][1], log,
             re.compile(r"^(\S+)Z INFO gsync.engine.worker going on .*crawl=History", re.MULTILINE))]


def gluster(bench: Bench) -> Iterator[Result]:
    """History, renames and lag from a volume to a volume, beside GlusterFS's own geo-replication."""
    count = bench.count(5_000)
    replay = Result(f"history of {count:,} x 1 KiB, volume to volume", "s", PEER, max_ratio=0.5)
    replay_cpu = Result("CPU time for it", "s", PEER)
    renames = Result(f"history of {2 * count:,} renames, two of each file", "s", PEER)
    renames_cpu = Result("CPU time for it", "s", PEER)
    lag = Result(f"lag of one small file, rollover of {ROLLOVER} s", "s", PEER)
    per_round = max(1, round(5 * bench.scale / bench.rounds))
    rng, failures = random.Random(5), list[str]()
    yield from (replay, replay_cpu, renames, renames_cpu, lag)  # filled as far as a contestant gets
    with contextlib.ExitStack() as stack:
        (bench.workdir / "site").mkdir()
        site = stack.enter_context(cluster(bench.workdir / "site"))
        sides = _sides(site, bench.workdir, stack)
        hosts: list[Host] = [*site.nodes, site["s1"]]
        (site.master / "first").write_bytes(b"here")

        def each(what: str, do: Callable[[Side], None], among: list[Side]) -> None:
            """If one fails, report that and measure the rest."""
            for side in among:
                bench.say(f"  {what}, {side.name}")
                try:
                    do(side)
                except (Failed, AssertionError) as exc:
                    bench.say(f"  {side.name} fails: {exc}\n{side.log()[-2000:]}")
                    if side.name != PEER:
                        failures.append(f"{what}: {str(exc).splitlines()[0]}")
                finally:
                    side.stop()

        def first_sync(side: Side) -> None:
            side.start()
            side.wait("its first sync", lambda: (side.brick / "first").exists())

        each("first sync", first_sync, sides)
        for number in range(bench.rounds):
            in_turn = sides if number % 2 == 0 else sides[::-1]
            name = f"round-{number}"
            round_of = f"round {number + 1} of {bench.rounds}"
            contents = _make(site.master / name, count, rng)
            time.sleep(2 * ROLLOVER + 1)  # from then on, everything is history

            def history(side: Side, name: str = name, contents: list[bytes] = contents) -> None:
                seconds, cpu = _replay(side, hosts, f"{count} files", lambda: _whole(side.brick / name, contents))
                _compare(side, name, contents)
                _note(side, (replay, seconds), (replay_cpu, cpu))

            each(f"{round_of}: history", history, in_turn)
            for old, new in (("file", "moved"), ("moved", "renamed")):
                for n in range(count):
                    os.rename(site.master / name / f"{old}-{n}", site.master / name / f"{new}-{n}")
            time.sleep(2 * ROLLOVER + 1)

            def renames_and_lag(side: Side, name: str = name, number: int = number) -> None:
                seconds, cpu = _replay(side, hosts, f"{2 * count} renames", lambda: _renamed(side.brick / name, count))
                _note(side, (renames, seconds), (renames_cpu, cpu))
                samples = [_lag(side, site.master, f"{side.name}-{number}-{n}", rng) for n in range(per_round)]
                (lag.gsync if side.name == "gsync" else lag.peers).append(samples)

            each(f"{round_of}: renames and lag", renames_and_lag, in_turn)
    if failures:
        raise Failed("\n".join(failures))


def _note(side: Side, *values: tuple[Result, float]) -> None:
    for result, value in values:
        (result.gsync if side.name == "gsync" else result.peers).append([value])


def _replay(side: Side, hosts: list[Host], what: str, done: Callable[[], bool]) -> tuple[float, float]:
    """Start it; return seconds and CPU seconds until its slave has all earlier changes."""
    watch, before = CpuWatch(hosts), time.time()
    side.start()
    begun = side.history_begun(before)
    side.wait(f"{what} at the slave", done)
    return time.time() - begun, watch.seconds()


def _make(folder: Path, count: int, rng: random.Random) -> list[bytes]:
    """Make files of random bytes; return their contents."""
    folder.mkdir()
    contents = [rng.randbytes(KIB) for _ in range(count)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda n: (folder / f"file-{n}").write_bytes(contents[n]), range(count)))
    return contents


def _whole(folder: Path, contents: list[bytes]) -> bool:
    try:
        return all(os.stat(folder / f"file-{n}").st_size == len(data) for n, data in enumerate(contents))
    except FileNotFoundError:
        return False


def _renamed(folder: Path, count: int) -> bool:
    return set(os.listdir(folder)) == {f"renamed-{n}" for n in range(count)}


def _compare(side: Side, name: str, contents: list[bytes]) -> None:
    with ThreadPoolExecutor(_WRITERS) as pool:
        found = pool.map(lambda n: (side.slave / name / f"file-{n}").read_bytes(), range(len(contents)))
        wrong = sum(data != there for data, there in zip(contents, found, strict=True))
    if wrong:
        raise Failed(f"{side.name}: {wrong} of {len(contents)} files have other contents at the slave")


def _lag(side: Side, master: Path, name: str, rng: random.Random) -> float:
    time.sleep(rng.uniform(1, 1 + ROLLOVER))
    data = rng.randbytes(KIB)
    (master / name).write_bytes(data)
    written = time.monotonic()

    def has_come() -> bool:
        try:
            return (side.brick / name).read_bytes() == data
        except FileNotFoundError:
            return False

    side.wait(f"a new file at the slave ({name})", has_come, LAG_PATIENCE)
    return time.monotonic() - written
