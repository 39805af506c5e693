"""A large archive on a vault: put, purged and got back identical, with kill -9 and damage on the way."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.archives import Place, damage
from lab.trees import compare, rsync_diff

FILES = int(os.environ.get("GSYNC_ARCHIVE_FILES", "100000"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


def fill(root: Path, rng: random.Random) -> None:
    """Files of some hundred bytes in folders of a hundred, with links, xattrs, modes and times; a few large ones."""
    for number in range(FILES):
        folder = root / f"{number // 10_000}" / f"{number // 100}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        path = folder / f"file {number}"
        path.write_bytes(b"content of %d\n" % number + rng.randbytes(rng.randrange(800)))
        if number % 10 == 0:
            os.utime(path, ns=(1, rng.randrange(1_700_000_000_000_000_000)))
        if number % 50 == 0:
            os.setxattr(path, "user.number", b"%d" % number)
            os.chmod(path, 0o600)
        if number % 100 == 0:
            (folder / "link").symlink_to(path.name)
            (folder / "hard").hardlink_to(path)
            (folder / "empty").touch()
    for number in range(4):
        (root / f"large {number}").write_bytes(rng.randbytes(32 << 20))


def killed(place: Place, verb: str, after: float, *args: str) -> None:
    """kill -9 while it works."""
    with place.start(verb, *args) as process:
        end = time.monotonic() + 600
        while place.status()["stage"] not in ("copying", "removing"):
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert place.status()["state"] == f"{verb} failed"


@pytest.mark.soak
def test_a_large_archive(place: Place, tmp_path: Path) -> None:
    fill(place.tree, random.Random(1))
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", place.tree, copy], check=True)

    def timed(verb: str, *args: str, code: int = 0) -> None:
        began = time.monotonic()
        out = place.run(verb, *args, code=code)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        print(f"{verb} {' '.join(args)}: {time.monotonic() - began:.1f} s, largest process so far {peak} MiB: "
              f"{out.splitlines()[0]}", flush=True)

    timed("create", "--vault", place.vault)
    killed(place, "put", 2.0)
    timed("put", "--retry")
    heal = damage(place, b"content of 77777\n" if FILES > 77777 else b"content of 77\n")
    timed("purge", code=1)
    entry, = place.status()["failed_entries"]
    assert entry["path"].endswith("77777" if FILES > 77777 else "file 77")
    assert compare(place.tree, copy, exclude=[os.fsencode(name) for name in [*place.markers, ".archive.log"]]) == []
    heal()
    timed("put", "--retry")
    killed(place, "purge", 0.2)
    timed("purge", "--retry")
    assert set(os.listdir(place.tree)) == {".archive.purge.done", ".archive.log"}
    heal = damage(place, b"content of 4242\n" if FILES > 4242 else b"content of 42\n")
    killed(place, "get", 2.0)
    timed("get", "--retry", code=1)
    entry, = place.status()["failed_entries"]
    print("damaged and named:", entry)
    line, = rsync_diff(copy, place.tree, exclude=("/.archive.*",))
    assert line.endswith(entry["path"])
    heal()
    timed("get", "--retry")
    assert rsync_diff(copy, place.tree, exclude=("/.archive.*",)) == []
