"""Two versions of a unit change places on a file system that cannot do it in one step (as NFS cannot; here exFAT)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.transfer.delivery import placement
from lab.images import FsImage

pytestmark = pytest.mark.root


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The new one and the old one."""
    with FsImage(tmp_path / "disk", 16 << 20, "exfat") as disk:
        new, old = disk.path / "incoming/new", disk.path / "night/unit"
        for place in (new, old):
            place.mkdir(parents=True)
            (place / "file").write_text(place.name)
        yield os.fsencode(new), os.fsencode(old)


def held(place: bytes) -> str:
    return Path(os.fsdecode(place), "file").read_text()


def killed_in(act: Callable[[], None], rename: int) -> bool:
    """Whether it was killed, behind its n-th rename."""
    pid = os.fork()
    if pid == 0:
        done, real = 0, os.rename

        def counted(*args: object) -> None:
            nonlocal done
            real(*args)  # type: ignore[arg-type]
            done += 1
            if done == rename:
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = counted  # type: ignore[assignment]
        try:
            act()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_they_change_places(versions: tuple[bytes, bytes]) -> None:
    new, old = versions
    assert placement.renameat2(new, old, placement.EXCHANGE) != 0
    placement.exchange(new, old)
    assert (held(new), held(old)) == ("unit", "new")


@pytest.mark.parametrize(("rename", "there"), [(1, "unit"), (2, "new"), (3, "new")])
def test_a_kill_in_between_is_mended(versions: tuple[bytes, bytes], rename: int, there: str) -> None:
    new, old = versions
    assert killed_in(lambda: placement.exchange(new, old), rename)
    placement.mend(new, old)
    assert held(old) == there
    placement.remove(new)  # as a restart does
    assert os.listdir(os.path.dirname(new)) == []


def test_nothing_is_renamed_over(versions: tuple[bytes, bytes]) -> None:
    new, old = versions
    with pytest.raises(FileExistsError):
        placement.rename_new(new, old)
    placement.rename_new(new, old + b" too")
    assert (held(old), held(old + b" too")) == ("unit", "new")
