"""The workloads of the bench. Each makes its trees, lets gsync and the peer work in turn, and yields results.

The contestants change places in each round. Masters and slaves with many files are on file systems of their own, and
the slave of an initial sync is on a fresh one each time: for minutes after a large removal, ext4 creates files several
times more slowly. These file systems are images behind a loop device, which copies everything that reaches the disk
once more, so large files are in plain folders.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab.bench.contestants import Gsync, Lsyncd, Rsync, Slave
from lab.bench.measure import MIB, CountingProxy, Failed, MemoryWatch, Result, Running, timed
from lab.images import FsImage
from lab.sshd import Sshd
from lab.trees import rsync_diff

KIB = 1024
IMAGE_SIZE = 8 * 1024 * MIB
Contestant = Gsync | Rsync | Lsyncd


@dataclass
class Bench:
    """Where a bench runs, and how large it is."""

    workdir: Path
    server: Sshd
    memory: MemoryWatch
    rounds: int = 3
    scale: float = 1.0
    gsync: Gsync = field(default_factory=Gsync)
    say: Callable[[str], None] = print
    serial: Iterator[int] = field(default_factory=itertools.count)

    def count(self, full: int) -> int:
        return max(5, round(full * self.scale))

    @contextlib.contextmanager
    def file_system(self, what: str) -> Iterator[Path]:
        """An empty folder on a fresh ext4 of its own; for users other than root, just a folder."""
        folder = self.workdir / f"{what}-{next(self.serial)}"
        with contextlib.ExitStack() as stack:
            if os.geteuid() == 0:
                folder = stack.enter_context(FsImage(folder, IMAGE_SIZE, options="noatime")).path
            (folder / "tree").mkdir(parents=True)
            yield folder / "tree"

    @contextlib.contextmanager
    def folder(self, what: str) -> Iterator[Path]:
        """An empty folder of the work directory, for few files."""
        folder = self.workdir / f"{what}-{next(self.serial)}"
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
        os.sync()

    @contextlib.contextmanager
    def fresh_slave(self, ssh_config: Path | None) -> Iterator[Slave]:
        with self.file_system("slave") as path:
            yield self.slave(path, ssh_config)

    def slave(self, path: Path, ssh_config: Path | None) -> Slave:
        return Slave(path, self.workdir / f"state-{next(self.serial)}", ssh_config)

    def running(self, argv: list[str]) -> Running:
        return Running(argv, self.workdir / f"log-{next(self.serial)}", self.memory)

    def once(self, contestant: Gsync | Rsync, master: Path, slave: Slave) -> float:
        """Seconds of one complete run. gsync's ends with everything durable, rsync's with everything in the page
        cache."""
        samples: list[float] = []
        with self.running(contestant.once(master, slave)) as running, timed(samples):
            running.finish()
        if isinstance(contestant, Gsync):
            lines = rsync_diff(master, slave.path)
            if lines:
                raise Failed("\n".join([f"{contestant.name}: {slave.path} differs from {master}", *lines[:10]]))
        return samples[0]

    @contextlib.contextmanager
    def following(self, contestant: Gsync | Lsyncd, master: Path, slave: Slave) -> Iterator[Running]:
        """Runs it until the end of the `with`, which begins when the contestant is in sync.

        In sync: a first new file came through, perhaps with the initial sync, and then a second one.
        """
        with self.running(contestant.follow(master, slave)) as running:
            for _time in range(2):
                canary = f"canary-{next(self.serial)}"
                (master / canary).write_bytes(b"here")
                running.wait_for("in step", partial(_has_come, slave.path / canary), pause=0.05)
            time.sleep(2)  # its own last steps, and lsyncd's delay
            os.sync()
            yield running

    def in_turn(self, contestants: list[Contestant]) -> Iterator[Contestant]:
        """Every contestant once in each round, with a different first one each time."""
        for number in range(self.rounds):
            shift = number % len(contestants)
            for contestant in contestants[shift:] + contestants[:shift]:
                os.sync()
                self.say(f"  round {number + 1} of {self.rounds}: {contestant.name}")
                yield contestant


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _has_come(canary: Path) -> bool:
    return read(canary) == b"here"


def make_small_files(root: Path, count: int, rng: random.Random, per_folder: int = 150, size: int = KIB) -> list[Path]:
    """Make files of `size` random bytes in folders of `per_folder`; return their paths relative to the root."""
    pool = rng.randbytes(MIB)
    files = []
    for number in range(count):
        if number % per_folder == 0:
            folder = f"folder-{number // per_folder:05}"
            (root / folder).mkdir()
        name = f"{folder}/file-{number:06}"
        start = rng.randrange(len(pool) - size)
        fd = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, pool[start : start + size])
        os.close(fd)
        files.append(Path(name))
    return files


def initial_small(bench: Bench) -> Iterator[Result]:
    """Initial sync of 100,000 files of 1 KiB."""
    count = bench.count(100_000)
    with bench.file_system("master") as master:
        make_small_files(master, count, random.Random(1))
        yield from _initial(bench, master, bench.file_system, f"{count:,} x 1 KiB", max_ratio_over_ssh=1.2)


def initial_large(bench: Bench) -> Iterator[Result]:
    """Initial sync of 8 files of 256 MiB."""
    size = max(MIB, round(256 * MIB * bench.scale))
    with bench.folder("master") as master:
        for number in range(8):
            with open(master / f"large-{number}", "wb") as file:
                for start in range(0, size, 16 * MIB):
                    file.write(os.urandom(min(16 * MIB, size - start)))
        yield from _initial(bench, master, bench.folder, f"8 x {size / MIB:g} MiB", max_ratio_over_ssh=0.7)


def _initial(bench: Bench, master: Path, place: Callable[[str], AbstractContextManager[Path]], what: str,
             max_ratio_over_ssh: float) -> Iterator[Result]:
    for way, ssh_config in (("local", None), ("ssh", bench.server.client_config)):
        result = Result(f"initial sync, {what}, {way}", "s", Rsync.name)
        result.max_ratio = None if ssh_config is None else max_ratio_over_ssh
        for contestant in bench.in_turn([Rsync(), bench.gsync]):
            assert not isinstance(contestant, Lsyncd)
            with place("slave") as path:
                seconds = bench.once(contestant, master, bench.slave(path, ssh_config))
            (result.gsync if isinstance(contestant, Gsync) else result.peers).append([seconds])
        yield result


def lag(bench: Bench) -> Iterator[Result]:
    """The time from close() of a new file on a quiet tree until the slave has its content."""
    rng = random.Random(2)
    per_round = -(-bench.count(20) // bench.rounds)
    for way, ssh_config in (("local", None), ("ssh", bench.server.client_config)):
        result = Result(f"lag of one small file, {way}", "s", Lsyncd.name, max_value=0.5)
        with contextlib.ExitStack() as stack:
            master = stack.enter_context(bench.file_system("master"))
            make_small_files(master, bench.count(2000), rng)
            slaves = {kind: stack.enter_context(bench.fresh_slave(ssh_config)) for kind in (Gsync, Lsyncd)}
            for contestant in bench.in_turn([Lsyncd(), bench.gsync]):
                assert not isinstance(contestant, Rsync)
                slave = slaves[type(contestant)]
                with bench.following(contestant, master, slave) as running:
                    samples = [_lag_of_one(bench, running, master, slave.path, rng) for _ in range(per_round)]
                (result.gsync if isinstance(contestant, Gsync) else result.peers).append(samples)
        yield result


def _lag_of_one(bench: Bench, running: Running, master: Path, slave: Path, rng: random.Random) -> float:
    time.sleep(rng.uniform(1.0, 2.0))  # quiet again, and at a random point within a second
    name, data, samples = Path("folder-00000", f"new-{next(bench.serial)}"), rng.randbytes(KIB), list[float]()
    (master / name).write_bytes(data)
    with timed(samples):
        running.wait_for(f"{name} at the slave", lambda: read(slave / name) == data)
    return samples[0]


def changed(bench: Bench) -> Iterator[Result]:
    """100 changed files in a tree of 200,000: while gsync follows, and after it was stopped meanwhile."""
    rng, count, few = random.Random(3), bench.count(200_000), bench.count(100)
    what = f"{few} changed files of {count:,}, ssh"
    follow = Result(f"{what}, following", "s", Rsync.name, max_ratio=0.2)
    restart = Result(f"{what}, stopped meanwhile", "s", Rsync.name)
    rsync = Rsync()
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(bench.file_system("master"))
        files = make_small_files(master, count, rng, size=200)
        slave = stack.enter_context(bench.fresh_slave(bench.server.client_config))
        peer = stack.enter_context(bench.fresh_slave(bench.server.client_config))
        bench.once(rsync, master, peer)
        bench.once(bench.gsync, master, slave)
        for number in range(bench.rounds):
            bench.say(f"  round {number + 1} of {bench.rounds}")
            with bench.following(bench.gsync, master, slave) as running:
                some = _change(master, rng.sample(files, few), rng)
                samples: list[float] = []
                with timed(samples):
                    waiting = set(some)
                    running.wait_for("equal", partial(_all_arrived, waiting, master, slave.path))
            follow.gsync.append(samples)
            follow.peers.append([bench.once(rsync, master, peer)])
            _change(master, rng.sample(files, few), rng)
            restart.gsync.append([bench.once(bench.gsync, master, slave)])
            restart.peers.append([bench.once(rsync, master, peer)])
    yield follow
    yield restart


def _change(master: Path, files: list[Path], rng: random.Random) -> list[Path]:
    for file in files:
        with open(master / file, "ab") as out:
            out.write(rng.randbytes(50))
    return files


def _all_arrived(waiting: set[Path], master: Path, slave: Path) -> bool:
    for file in list(waiting):
        mine, theirs = os.stat(master / file), os.stat(slave / file)
        if mine.st_mtime_ns == theirs.st_mtime_ns and read(slave / file) == read(master / file):
            waiting.remove(file)
    return not waiting


def rename(bench: Bench) -> Iterator[Result]:
    """A directory of 20,000 files is renamed while the contestant follows; over ssh, through a byte counter."""
    count = bench.count(20_000)
    seconds = Result(f"rename of a directory of {count:,} files, ssh", "s", Lsyncd.name, max_value=2)
    sent = Result("bytes over the network for it", "MB", Lsyncd.name, max_value=1)
    proxy = CountingProxy(bench.server.port)
    try:
        with contextlib.ExitStack() as stack:
            ssh_config = _config_through(bench, proxy)
            master = stack.enter_context(bench.file_system("master"))
            (master / "tree-0").mkdir()
            make_small_files(master / "tree-0", count, random.Random(4), per_folder=count)
            names = (f"tree-{number}" for number in itertools.count())
            name = next(names)
            slaves = {kind: stack.enter_context(bench.fresh_slave(ssh_config)) for kind in (Gsync, Lsyncd)}
            for contestant in bench.in_turn([Lsyncd(), bench.gsync]):
                assert not isinstance(contestant, Rsync)
                slave, new = slaves[type(contestant)].path, next(names)
                with bench.following(contestant, master, slaves[type(contestant)]) as running:
                    before, samples = proxy.sent, list[float]()
                    with timed(samples):
                        os.rename(master / name, master / new)
                        running.wait_for("renamed", partial(_is_renamed, slave, name, new, count), pause=0.01)
                    time.sleep(2)  # bytes still being sent belong to it
                    megabytes = (proxy.sent - before) / 1e6
                for result, values in ((seconds, samples), (sent, [megabytes])):
                    (result.gsync if isinstance(contestant, Gsync) else result.peers).append(values)
                name = new
    finally:
        proxy.stop()
    yield seconds
    yield sent


def _is_renamed(slave: Path, old: str, new: str, count: int) -> bool:
    folder = slave / new / "folder-00000"
    return folder.is_dir() and not (slave / old).exists() and len(os.listdir(folder)) == count


def _config_through(bench: Bench, proxy: CountingProxy) -> Path:
    """The server's client configuration with the proxy's port in place of the server's."""
    server = bench.server
    own, through = bench.workdir / "known_hosts", bench.workdir / "ssh_config"
    own.write_text(server.known_hosts.read_text().replace(f":{server.port} ", f":{proxy.port} "))
    text = server.client_config.read_text().replace(f"Port {server.port}", f"Port {proxy.port}")
    through.write_text(text.replace(str(server.known_hosts), str(own)))
    return through


WORKLOADS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "initial-small": initial_small, "initial-large": initial_large, "lag": lag, "changed": changed, "rename": rename,
}
