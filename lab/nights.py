"""Nights of units as an instrument's host has them, and `gsync deliver` on them.

    source/data/<night>/<exposure>/...  with checksum-<exposure>.sha256sum, written by sha256sum(1)
    source/ready/<night>/<exposure>     links to those
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gsync.transfer.delivery import dataset
from gsync.transfer.delivery.checksums import line_of, walk
from gsync.transfer.delivery.context import Summary
from gsync.transfer.delivery.rounds import Rounds
from gsync.transfer.queue.registry import open_store
from gsync.transfer.stores.vaultfiles import make_vault
from lab import REPOSITORY

PATIENCE = 120.0
HOSTILE = [b"a b", b"new\nline", b"cr\r", b"back\\slash", b"*star", b"-dash", b"per%cent", b"\xff\xfe",
           b"\xc3\xa9t\xc3\xa9", b"quote'\"", b"x" * 200]


def night_of(days_ago: int) -> str:
    return (datetime.now(UTC).date() - timedelta(days=days_ago)).strftime("%Y%m%d")


class Nights:
    """A source, staging, a destination, a vault and a state directory below one folder. `args` go with each command."""

    def __init__(self, folder: Path, *, source: str = "", name: str = "raw") -> None:
        self.folder = folder
        for each in ("source/data", "source/ready", "staging", "destination", "vault"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        make_vault(str(folder / "vault"))
        self.data, self.ready = folder / "source/data", folder / "source/ready"
        self.staging, self.destination, self.vault = folder / "staging", folder / "destination", folder / "vault"
        self.quarantine = self.staging / ".gsync-quarantine"
        self.home, self.ini, self.page = folder / "home", folder / "deliver.ini", folder / "page"
        self.source = source or str(self.ready)
        self.name = name
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        self.env = {**os.environ, "GSYNC_HOME": str(self.home), "PYTHONPATH": path, "COLUMNS": "150", "TERM": "xterm"}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.write_ini()

    def write_ini(self, common: Mapping[str, object] | None = None, alerts: Mapping[str, object] | None = None,
                  **options: object) -> None:
        """Write the settings; those of the data set by keyword, with _ for -."""
        def lines(section: str, values: Mapping[str, object]) -> str:
            return f"[{section}]\n" + "".join(f"{key.replace('_', '-')} = {value}\n" for key, value in values.items())

        self.ini.write_text(lines(self.name, {
            "source": self.source, "staging": self.staging, "destination": self.destination, "vault": self.vault_url,
            **options}) + lines("common", {
                "interval": "0.2s", "retry-pause": "0.1s", "page": self.page, "kill-file": self.folder / "stop",
                **(common or {})}) + lines("alerts", alerts or {}))

    @property
    def vault_url(self) -> str:
        return f"tar://{self.vault}"

    def in_vault(self, unit: bytes) -> dict[bytes, bytes | None]:
        """The vault's content of a unit, read from its tars, in the form of `contents`."""
        store = open_store(self.vault_url)
        found: dict[bytes, bytes | None] = {}

        def take(path: bytes, below: bytes) -> None:
            for item in store.list(path):
                name = os.path.join(below, os.path.basename(item.path))
                if item.is_dir:
                    found[name] = None
                    take(item.path, name)
                else:
                    into = io.BytesIO()
                    store.get(item.path, into)
                    found[name] = into.getvalue()

        try:
            take(os.fsencode(self.name) + b"/" + unit, b"")
        finally:
            store.close()
        return found

    # the source

    def make(self, night: str, exposure: int | str, files: Mapping[bytes, bytes] | None = None, *, listed: bool = True,
             ready: bool = True) -> bytes:
        """Make a unit; return its path."""
        name = exposure if isinstance(exposure, str) else f"{exposure:08}"
        unit = os.fsencode(f"{night}/{name}")
        place = os.path.join(os.fsencode(self.data), unit)
        if files is None:
            files = {f"fibermap-{name}.fits".encode(): name.encode() * 50, f"desi-{name}.fits.fz".encode():
                     hashlib.sha256(name.encode()).digest() * 300, b"sub/guide.txt": b"guide " + name.encode()}
        for path, content in files.items():
            self.write(unit, path, content)
        os.makedirs(place, exist_ok=True)
        if listed:
            self.write_list(unit)
        if ready:
            self.link(unit)
        return unit

    def write(self, unit: bytes, path: bytes, content: bytes) -> None:
        target = os.path.join(os.fsencode(self.data), unit, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)

    def list_path(self, unit: bytes) -> str:
        name = os.path.basename(os.fsdecode(unit))
        return os.path.join(str(self.data), os.fsdecode(unit), f"checksum-{name}.sha256sum")

    def write_list(self, unit: bytes) -> None:
        """Write the checksum list for the files that are there."""
        place = os.path.join(os.fsencode(self.data), unit)
        own = os.fsencode(os.path.basename(self.list_path(unit)))
        with open(self.list_path(unit), "wb") as file:
            for name, _mode in walk(place):
                path = os.path.join(place, name)
                if os.path.isfile(path) and name != own:
                    with open(path, "rb") as content:
                        file.write(line_of(name, hashlib.sha256(content.read()).hexdigest()))

    def link(self, unit: bytes) -> None:
        link = os.path.join(os.fsencode(self.ready), unit)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        if not os.path.lexists(link):
            os.symlink(os.path.join(os.fsencode(self.data), unit), link)

    # the command

    def argv(self, verb: str, *args: object) -> list[str]:
        return [sys.executable, "-P", "-m", "gsync", "deliver", verb, "-c", str(self.ini), *map(str, args)]

    def run(self, verb: str, *args: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.argv(verb, *args), env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=PATIENCE, check=False)
        assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def round(self, only: str = "", now: datetime | None = None, stop: threading.Event | None = None) -> list[Summary]:
        """Run one round in this process, at this moment."""
        settings = dataset.read(str(self.ini), self.env)
        with Rounds(settings, str(self.home), stop=stop, clock=lambda: now or datetime.now(UTC)) as rounds:
            return rounds.once(only)

    def start(self, *args: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the daemon; its log goes to a file."""
        with open(self.folder / "daemon.log", "ab") as log:
            return subprocess.Popen(self.argv("run", *args), env={**self.env, **(env or {})}, stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=log, text=True)

    def log(self) -> str:
        path = self.folder / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def status(self, *args: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json", *args).stdout)
        return found

    def units(self, *nights: str) -> dict[str, dict[str, Any]]:
        """Each unit by its path, as status shows it; names that are not UTF-8 by their bytes."""
        names = nights or tuple(sorted({each.name for each in self.ready.iterdir()}))
        found = {}
        for each in self.status(*names)["sets"][0]["nights"]:
            for unit in each["members"]:
                name = unit["unit"] if isinstance(unit["unit"], str) else unit["unit"]["path"]
                found[name] = unit
        return found

    def states(self) -> dict[str, int]:
        found: dict[str, int] = self.status()["sets"][0]["units"]
        return found

    def wait_for(self, true: Callable[[], object], what: str = "it", progress: Callable[[], object] = lambda: None
                 ) -> None:
        """progress: patience starts again whenever its value changes."""
        seen, until = progress(), time.monotonic() + PATIENCE
        while not true():
            if (now := progress()) != seen:
                seen, until = now, time.monotonic() + PATIENCE
            assert time.monotonic() < until, f"{what} did not come true\n{self.log()[-5000:]}"
            time.sleep(0.1)

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
        process.send_signal(number)
        return process.wait(PATIENCE)

    # results

    def is_as_source(self, unit: bytes) -> bool:
        """Whether the delivered unit has exactly the source's files."""
        return contents(os.path.join(os.fsencode(self.destination), unit)) == contents(
            os.path.join(os.fsencode(self.data), unit))

    def leftovers(self) -> list[str]:
        """Entries in staging, and hidden ones in the destination, that belong to no unit put aside."""
        found = [f"staging/{name}" for name in os.listdir(self.staging)
                 if name not in (".gsync-quarantine", ".gsync-deliver.lock")]
        return found + [f"destination/{name}" for name in os.listdir(self.destination) if name.startswith(".gsync")]


def contents(folder: bytes) -> dict[bytes, bytes | None]:
    """A folder's content: the bytes of each file, None for a directory."""
    found: dict[bytes, bytes | None] = {}
    for name, _mode in walk(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            found[name] = None
        else:
            with open(path, "rb") as file:
                found[name] = file.read()
    return found


def remove(folder: Path) -> None:
    """Remove a tree, whatever its permissions."""
    for path, _dirs, _files in os.walk(folder):
        os.chmod(path, 0o700)
    shutil.rmtree(folder)
