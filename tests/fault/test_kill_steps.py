"""Killed at any step of a batch, a restart converges; and no reader of the slave ever sees a new file incomplete."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from gsync.recorder import detectors
from lab.model.world import Killed, World
from lab.place import PATIENCE, Place
from lab.trees import wait_until_equal

TRIES = 8


# ------------------------------------------------------------------- every durable step, in one process

def prepared(w: World, top: str = "m") -> None:
    for path in ("d/x", "e", "gone/below"):
        w.mkdir(f"{top}/{path}")
    for n, path in enumerate(("a", "b", "c", "d/f", "d/x/g", "e/h", "gone/i", "gone/below/j")):
        w.mk(f"{top}/{path}", str(n))
    w.quiet()
    w.check_equal()


def changed(w: World, top: str = "m") -> None:
    """A batch in which everything happens: new, renamed, replaced, removed, linked, rewritten."""
    def at(path: str) -> str:
        return f"{top}/{path}"

    w.mkdir(at("new/deep"))
    w.mk(at("new/k"), "new")
    w.mk(at("new/deep/l"), "new")
    w.mv(at("d"), at("new/d"))            # an old directory in a new one,
    w.mv(at("new/d/x"), at("e/x"))        # and one out of it
    w.mv(at("a"), at("b"))                # over another
    w.mk(at("a"), "another")
    w.mv(at("new/d/f"), at("t"))          # a swap
    w.mv(at("c"), at("new/d/f"))
    w.mv(at("t"), at("c"))
    w.ln(at("c"), at("new/second"))
    w.write(at("e/h"), "rewritten")
    w.symlink("../e", at("new/link"))
    w.chmod(at("e"), 0o700)
    w.rm(at("gone"))
    w.poll()
    w.cut()


def in_a_world(test: Callable[[World], None]) -> None:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as base:
        w = World(Path(base) / "w", detectors.inotify)
        try:
            prepared(w)
            test(w)
            w.step = lambda name: None
            w.quiet()
            w.check_equal()
        finally:
            w.close()


@pytest.mark.slow
@pytest.mark.parametrize("moves_on", [False, True], ids=["", "the master moves on"])
def test_killed_after_every_step_of_a_batch(moves_on: bool) -> None:
    names: list[str] = []

    def all_steps(w: World) -> None:
        changed(w)
        w.step = lambda name: None if name.startswith("recorder") else names.append(name)
        while w.cycle():
            pass

    in_a_world(all_steps)
    assert len(set(names)) > 10

    for nth in range(len(names)):
        def dies(w: World, nth: int = nth) -> None:
            changed(w)
            left = [nth]

            def step(name: str) -> None:
                if not name.startswith("recorder"):
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed(name)

            w.step = step
            with pytest.raises(Killed):
                while w.cycle():
                    pass
            if moves_on:
                w.step = lambda name: None
                w.mv("m/new", "m/later")
                w.mv("m/later/d", "m/d")
                w.rm("m/e/x")
                w.mk("m/later/k", "once more")

        in_a_world(dies)


# ------------------------------------------------------------------------------------- real processes

def touched(place: Place) -> bool:
    try:
        index = sqlite3.connect(f"file:{place.slave}/.gsync/index.db?mode=ro", uri=True, timeout=0)
        try:
            return bool(index.execute("SELECT 1 FROM touched LIMIT 1").fetchone())
        finally:
            index.close()
    except sqlite3.Error:
        return False


def in_limbo(place: Place, folder: str) -> bool:
    return bool(os.listdir(place.slave / ".gsync" / "limbo" / folder))


MOMENTS: dict[str, Callable[[Place], bool]] = {
    "files are in limbo/new": lambda place: in_limbo(place, "new"),
    "names are noted": touched,
    "inodes wait in limbo/old": lambda place: in_limbo(place, "old"),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("kills"))
    with place.follow():
        yield place


def shake(place: Place) -> None:
    """Enough of every kind to keep a batch busy for a while."""
    step = max((int(path.name[3:]) for path in place.master.glob("new*")), default=0) + 1
    new = place.master / f"new{step}"
    for n in range(15):
        (new / f"{n}").mkdir(parents=True)
        for m in range(20):
            (new / f"{n}" / f"{m}").write_bytes(b"%d" % m * 200)
    old = place.master / f"new{step - 1}"
    if old.exists():
        (old / "0").rename(new / "old")
        (old / "1").rename(place.master / f"kept{step}")
        for n in range(20):
            (old / "2" / f"{n}").replace(new / "3" / f"{n}")
            (old / "4" / f"{n}").write_bytes(b"rewritten")
        shutil.rmtree(old)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("role", ["worker", "agent", "receiver", "recorder"])
def test_killed_when(live: Place, role: str, moment: str) -> None:
    for _ in range(TRIES):
        shake(live)
        hit = killed_at(live, role, MOMENTS[moment])
        assert wait_until_equal(live.master, live.slave, PATIENCE) == [], live.log()
        live.wait_for(lambda brick: brick["state"] == "Active" and brick["failures"] == 0)
        if hit:
            return
    pytest.fail(f"in {TRIES} batches there was no moment to kill it at")


def killed_at(place: Place, role: str, moment: Callable[[Place], bool]) -> bool:
    """Whether the process could be killed at such a moment before all was over."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        look_again = time.monotonic() + 0.5
        while time.monotonic() < look_again:
            if moment(place) and place.kill(role):
                return True
        if not wait_until_equal(place.master, place.slave, 0):
            return False
    raise AssertionError(place.log())


# ----------------------------------------------------------------------------------------- the reader

MTIME = 1_000_000_000_123_456_789


def whole(size: int, seed: int) -> bytes:
    """Contents that tell whether they are complete."""
    data = b"%d\n" % seed * (size // 4)
    return b"%d %s\n" % (len(data), blake2b(data, digest_size=8).hexdigest().encode()) + data


def publish(path: Path, data: bytes, folder: Path) -> None:
    """Like a program that takes care: complete elsewhere, then renamed into place."""
    temporary = folder / "temporary"
    temporary.write_bytes(data)
    temporary.chmod(0o640)
    os.utime(temporary, ns=(MTIME, MTIME))
    temporary.replace(path)


def read_all(root: Path, stop: Event, found: multiprocessing.Queue[str]) -> None:
    """Reads every file again and again; tells of each that is not whole."""
    seen = 0
    while not stop.is_set():
        for folder, names, files in os.walk(root):
            if ".gsync" in names:
                names.remove(".gsync")
            for name in files:
                path = Path(folder, name)
                try:
                    with path.open("rb") as file:
                        st = os.fstat(file.fileno())
                        data = file.read()
                except FileNotFoundError:
                    continue
                seen += 1
                head, _, rest = data.partition(b"\n")
                if head != b"%d %s" % (len(rest), blake2b(rest, digest_size=8).hexdigest().encode()):
                    found.put(f"{path}: {len(data)} bytes, incomplete: {head!r}")
                if stat.S_IMODE(st.st_mode) != 0o640 or st.st_mtime_ns != MTIME:
                    found.put(f"{path}: mode {st.st_mode:o}, mtime {st.st_mtime_ns}")
    found.put(f"seen {seen}")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tarssh", "rsync"])
def test_no_reader_ever_sees_a_new_file_incomplete(tmp_path: Path, method: str) -> None:
    place = Place(tmp_path, args=("--sync-method", method))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    sizes = [0, 10, 5000, 100_000, 2_000_000]
    stop, found = multiprocessing.Event(), multiprocessing.Queue()  # type: ignore[var-annotated]
    reader = multiprocessing.Process(target=read_all, args=(place.slave, stop, found))
    for n in range(30):
        publish(place.master / f"first{n}", whole(sizes[n % 5], n), folder)
    reader.start()
    try:
        with place.follow():
            for turn in range(3):
                new = tmp_path / f"new{turn}"
                new.mkdir()
                for n in range(20):
                    publish(place.master / f"first{n}", whole(sizes[(n + turn) % 5], turn), folder)   # replaces one
                    publish(place.master / f"new{turn}.{n}", whole(sizes[n % 5], turn), folder)
                    publish(new / f"{n}", whole(sizes[n % 5], turn), folder)
                new.rename(place.master / f"dir{turn}")                                    # comes with its contents
                (place.master / "first25").rename(place.master / "t")
                (place.master / "first26").rename(place.master / "first25")
                (place.master / "t").rename(place.master / "first26")
                assert wait_until_equal(place.master, place.slave, PATIENCE) == [], place.log()
                if turn == 1:
                    place.kill("agent")
    finally:
        stop.set()
        lines = []
        while not (line := found.get(timeout=PATIENCE)).startswith("seen "):
            lines.append(line)
        reader.join()
    assert lines == []
    assert int(line.split()[1]) > 100
