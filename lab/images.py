"""Fresh file systems in image files, for benches, full disks and read-only slaves. Root only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MKFS = {  # ext4: room for xattrs and for times in nanoseconds, on small images too
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "exfat": ["mkfs.exfat"],
}
_DRIVERS = {"exfat": "exfat-fuse"}  # the kernel's own driver is often left out
_OPTIONS = {"ext4": "noinit_itable"}  # no lazy initialisation in the background of a measurement


class FsImage:
    """A file system of `size` bytes, mounted at `path` from construction to `close()`: one of ext4, xfs, btrfs, exfat
    (in a sparse image file) or tmpfs."""

    def __init__(self, folder: str | os.PathLike[str], size: int, fstype: str = "ext4", options: str = "") -> None:
        self.dir = Path(folder).absolute()
        self.path = self.dir / "mnt"
        self.fstype = fstype
        self.path.mkdir(parents=True)
        wanted = [text for text in (options, _OPTIONS.get(fstype, "")) if text]
        if fstype == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *wanted]), "gsync-test", str(self.path))
            return
        image = self.dir / "image"
        with image.open("wb") as file:
            file.truncate(size)
        _run(*_MKFS[fstype], str(image))
        self._mount = ("mount", "-t", _DRIVERS.get(fstype, fstype), "-o", ",".join(["loop", *wanted]), str(image),
                       str(self.path))
        _run(*self._mount)

    def unplug(self) -> None:
        """Unmount it and mount it again: then the kernel caches none of its inodes."""
        self.unmount()
        _run(*self._mount)

    def remount(self, *, read_only: bool) -> None:
        _run("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", str(self.path))

    def unmount(self) -> None:
        """Unmount it. Waits for processes that are just exiting; whatever is still busy then is detached."""
        for _attempt in range(20):
            if subprocess.run(["umount", str(self.path)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        _run("umount", "--lazy", str(self.path))

    def close(self) -> None:
        if os.path.ismount(self.path):
            self.unmount()
        if self.fstype != "tmpfs":
            (self.dir / "image").unlink()

    def __enter__(self) -> FsImage:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@contextmanager
def mounted_copy(image: Path, folder: Path) -> Iterator[Path]:
    """The disk as it would be found after the power comes back: a copy of the image has what was written by now."""
    copy, place = folder / "copy", folder / "after"
    _run("cp", "--sparse=always", str(image), str(copy))
    place.mkdir(exist_ok=True)
    _run("mount", "-o", "loop", str(copy), str(place))
    try:
        yield place
    finally:
        _run("umount", str(place))
        copy.unlink()


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
