"""An archive for tests: a tree, a vault, a state directory, and the gsync command as a process or called here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gsync.transfer.archive import eosfile
from gsync.transfer.archive.archiver import Archiver
from gsync.transfer.archive.batches import JobOptions
from gsync.transfer.archive.disk import DiskTree
from gsync.transfer.archive.outcome import Verify
from gsync.transfer.archive.rows import Archives
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Store
from gsync.transfer.stores.vaultfiles import make_vault
from lab import REPOSITORY
from lab.trees import Entry, _differences, scan

KINDS = ["tar", "dir"]


class Place:
    """A tree, a vault and a home below `folder`. close() clears immutable flags, so that the folder can be removed."""

    def __init__(self, folder: Path, kind: str = "tar") -> None:
        self.tree, self.vault_dir, self.home = folder / "tree", folder / "vault", folder / "home"
        self.vault = f"tar://{self.vault_dir}" if kind == "tar" else str(self.vault_dir)
        for path in (self.tree, self.vault_dir):
            path.mkdir(exist_ok=True)
        if kind == "tar":
            make_vault(str(self.vault_dir))

    def close(self) -> None:
        if self.tree.is_dir():
            disk = DiskTree(os.fsencode(self.tree))
            disk.thaw_all()
            disk.close()

    def argv(self, verb: str, *args: str) -> list[str]:
        """The command line of a verb on the tree; list takes no directory, kill takes an id."""
        return [sys.executable, "-m", "gsync", "archive", verb, *([] if verb in ("list", "kill") else [str(self.tree)]),
                *args, "--state", str(self.home)]

    def start(self, verb: str, *args: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.argv(verb, *args), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, **more)

    def run(self, verb: str, *args: str, code: int = 0) -> str:
        """Run a verb; return its output, errors included."""
        with self.start(verb, *args) as process:
            out, err = process.communicate()
        assert process.returncode == code, f"{verb}: {process.returncode}: {out}{err}"
        return out + err

    def create(self) -> str:
        return self.run("create", "--vault", self.vault)

    def status(self) -> dict[str, Any]:
        with self.start("status", "--json") as process:
            out, err = process.communicate()
        assert process.returncode in (0, 1), err
        return dict(json.loads(out))

    @property
    def markers(self) -> list[str]:
        return sorted(name for name in os.listdir(self.tree) if os.fsencode(name) in eosfile.MARKERS)

    def seen(self) -> dict[bytes, Entry]:
        return scan(self.tree, exclude=eosfile.RESERVED)


def small_tree(place: Place) -> None:
    """Fill the tree with one of everything that matters to the order of steps."""
    (place.tree / "d/e").mkdir(parents=True)
    (place.tree / "empty dir").mkdir()
    (place.tree / "d/f").write_text("first")
    (place.tree / "d/e/g").write_text("second\n" * 1000)
    (place.tree / "hard").hardlink_to(place.tree / "d/f")
    (place.tree / "link").symlink_to("d/f")
    (place.tree / "empty").touch()
    os.setxattr(place.tree / "d/f", "user.note", b"kept")
    os.utime(place.tree / "d", ns=(1, 1_500_000_000_123_456_789))
    os.chmod(place.tree / "d/e", 0o2755)


class Here:
    """The same commands, called in this process."""

    def __init__(self, place: Place, verify: Verify = Verify.CHECKSUM, retries: int = 2, batch: int = 3, jobs: int = 1,
                 around: Callable[[Store], Store] = lambda store: store, tell_every: float = 0.5) -> None:
        self.place = place
        self.transfers = Transfers(str(place.home))
        self.archives = Archives(self.transfers, str(place.home))
        self.stores = Stores(self.transfers)
        self.root = os.fsencode(os.path.realpath(place.tree))
        options = JobOptions(batch, jobs, RetryPolicy(retries, first_pause=0.001, longest_pause=0.01), tell_every)
        self.do = Archiver(self.archives, lambda name: around(self.stores.get(name)), options, verify)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *args: object) -> None:
        self.stores.close()
        self.transfers.close()

    def create(self) -> None:
        self.do.create(self.root, self.place.vault)

    @property
    def state(self) -> str:
        archive = self.archives.at(self.root)
        return archive.state if archive else "none"

    @property
    def failed(self) -> dict[str, str]:
        return {os.fsdecode(path): why for path, why in self.archives.failures(self.archives.the(self.root))}


def changes(before: dict[bytes, Entry], now: dict[bytes, Entry]) -> list[object]:
    """The differences between two looks at a tree."""
    return [*(before.keys() ^ now.keys()),
            *((path, text) for path in before.keys() & now.keys()
              for text in _differences(before[path], now[path], False))]


def damage(place: Place, content: bytes) -> Callable[[], None]:
    """Change a byte in the vault at the place where `content` begins; return a function that restores it."""
    hits = []
    for path in place.vault_dir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if (at := data.find(content)) >= 0:
                hits.append((path, at, data[at:at + 1]))
    assert hits, content

    def write(flipped: bool) -> None:
        for path, at, old in hits:
            st = path.stat()
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([old[0] ^ 0xFF]) if flipped else old)
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))

    write(True)
    return lambda: write(False)
