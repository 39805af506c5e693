"""A session: one master volume, one slave, the settings, and where on this host its state lies.

Owns `$GSYNC_HOME/sessions/<name>/` and session.json in it; the other files there belong to the worker and to
`gsync run`, which take their paths from here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from dataclasses import dataclass
from hashlib import blake2b

from gsync.durable import make_dirs, replace_file
from gsync.errors import UsageError
from gsync.session.options import Options
from gsync.transport.link import parse_slave
from gsync.volume.home import Home, check_name

FORMAT = 1


def readable_name(*texts: str, unique: str) -> str:
    """A name made of what is legible in the texts, and a short hash of `unique`; the same for the same input."""
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:24].strip("-.") for text in texts]
    digest = blake2b(os.fsencode(unique), digest_size=4).hexdigest()
    return "-".join([word for word in words if word] + [digest])


def auto_volume_name(path: str) -> str:
    """The name of the volume that is made for a directory (its real path) that a run names as its master."""
    return readable_name(os.path.basename(path), unique=path)


def default_session_name(master: str, slave: str) -> str:
    """The name of the session of this master (a volume's name) and slave: readable, stable, unique."""
    where = parse_slave(slave)
    return readable_name(re.sub(r"-[0-9a-f]{8}$", "", master), "to", where.host or "",
                         os.fsdecode(os.path.basename(where.path)), unique=f"{master}\0{slave}")


@dataclass(frozen=True)
class Session:
    """A session as its session.json says, and the paths of its files. `created` in ns since the epoch."""

    folder: str
    name: str
    volume: str
    slave: str
    created: int
    options: Options = dataclasses.field(default_factory=Options)

    @property
    def changelog_db(self) -> str:
        return os.path.join(self.folder, "changelog.db")

    @property
    def ledger_db(self) -> str:
        return os.path.join(self.folder, "ledger.db")

    @property
    def worker_status(self) -> str:
        return os.path.join(self.folder, "worker.status")

    @property
    def worker_lock(self) -> str:
        return os.path.join(self.folder, "worker.lock")

    @property
    def run_lock(self) -> str:
        """Held by the `gsync run` of this session."""
        return os.path.join(self.folder, "run.lock")

    @property
    def log(self) -> str:
        return os.path.join(self.folder, "log")


class SessionHome:
    """The sessions of a state folder."""

    def __init__(self, home: Home) -> None:
        self._folder = os.path.join(home.path, "sessions")

    def find_or_new(self, volume: str, slave: str) -> Session:
        """The session of this volume and slave, whatever it is called; else a new one, which `save` makes real."""
        found = next((s for s in self.list() if s.volume == volume and s.slave == slave), None)
        if found is not None:
            return found
        name = default_session_name(volume, slave)
        return Session(os.path.join(self._folder, name), name, volume, slave, time.time_ns())

    def save(self, session: Session) -> None:
        """Writes session.json, durably and in one step."""
        values = {"format": FORMAT, "name": session.name, "volume": session.volume, "slave": session.slave,
                  "created": session.created, "options": dataclasses.asdict(session.options)}
        make_dirs(os.fsencode(session.folder))
        replace_file(os.fsencode(os.path.join(session.folder, "session.json")),
                     json.dumps(values, indent=1).encode("ascii") + b"\n")

    def get(self, name: str) -> Session:
        """UsageError if there is no such session, or its file is damaged."""
        check_name("session", name)
        session = self._load(name)
        if session is None:
            raise UsageError(f"session {name}: there is none; `gsync status` lists them")
        return session

    def the(self, name: str | None) -> Session:
        """The session of this name; without one, the only session there is. UsageError."""
        if name is not None:
            return self.get(name)
        sessions = self.list()
        if len(sessions) != 1:
            raise UsageError("there is no session" if not sessions else
                             "which session? " + ", ".join(session.name for session in sessions))
        return sessions[0]

    def list(self) -> list[Session]:
        """All sessions, by name."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        loaded = (self._load(name) for name in names)
        return [session for session in loaded if session is not None]

    def _load(self, name: str) -> Session | None:
        folder = os.path.join(self._folder, name)
        path = os.path.join(folder, "session.json")
        try:
            with open(path, encoding="ascii") as file:
                values = json.load(file)
            if values["format"] != FORMAT:
                raise UsageError(f"{path}: of format {values['format']}, which this gsync does not know")
            created = int(values["created"])
            texts = [str(values[key]) for key in ("volume", "slave")]
            options = dict(values["options"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{path}: damaged: {exc!r}") from exc
        except OSError as exc:
            raise UsageError(f"{path}: {exc.strerror}") from exc
        return Session(folder, name, texts[0], texts[1], created, Options.of(options, path))
