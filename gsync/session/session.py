"""A session: one master volume, one slave, its settings, and the paths of its state.

Two directories: `folder`, `$GSYNC_HOME/sessions/<name>/`, belongs to this node; `shared` is visible to all nodes, on
the meta volume, and is the same as `folder` for a session of one node. session.json identifies the session, gsync.conf
has its settings (config), `wanted` its wanted state (control). A GlusterFS master has a worker for each brick: its own
files are in folder/brick_<n>/, those it shares with the workers of the brick's other copies in shared/subvol_<n>/.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import blake2b
from typing import Any
from uuid import UUID

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import fsync_dir, make_dirs, replace_file
from gsync.base.errors import UsageError
from gsync.engine.ledger import ledger_epochs
from gsync.link.link import parse_slave
from gsync.session import config
from gsync.session.metavolume import GEO_REP
from gsync.session.options import Options
from gsync.state.home import Home, Volume, check_name

FORMAT = 2
_FILE = "session.json"
_DELETED = ".deleted"  # beside the sessions: what remains of deleted ones, by volume and slave
_EPOCHS = ("epoch", "*_subvol_*.lock")
_REMAINS = (*_EPOCHS, "ledger*.db*", "changelog.db*", "subvol_*", "brick_*")  # as for fnmatch


def readable_name(*texts: str, unique: str) -> str:
    """A name made of the legible parts of the texts and a short hash of `unique`; the same for the same input."""
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:24].strip("-.") for text in texts]
    digest = blake2b(os.fsencode(unique), digest_size=4).hexdigest()
    return "-".join([word for word in words if word] + [digest])


def auto_volume_name(path: str) -> str:
    """The name of the volume made on the fly for a directory (its real path)."""
    return readable_name(os.path.basename(path), unique=path)


def default_session_name(master: str, slave: str) -> str:
    """The name of the session of this master (a volume's name) and slave: readable, stable, unique."""
    where = parse_slave(slave)
    return readable_name(re.sub(r"-[0-9a-f]{8}$", "", master), "to", where.host or "",
                         os.fsdecode(os.path.basename(where.path)).lstrip(":"), unique=f"{master}\0{slave}")


@dataclass(frozen=True)
class Part:
    """A worker's part of a session whose master is a GlusterFS volume: its brick, and the brick's subvolume. several:
    there are other subvolumes."""

    brick: int
    subvolume: int
    several: bool


@dataclass(frozen=True)
class Session:
    """A session as its session.json says, and the paths of its files. `created` in ns since the epoch. part: for the
    worker of one brick, if there are several."""

    folder: str
    shared: str
    name: str
    volume: str
    slave: str
    created: int
    options: Options = dataclasses.field(default_factory=Options)
    part: Part | None = None

    def parts(self, volume: Volume) -> list[Session]:
        """This session as each of its workers on this node has it."""
        if volume.gluster is None:
            return [self]
        several = volume.gluster.subvolumes > 1
        return [dataclasses.replace(self, part=Part(brick.number, brick.subvolume, several))
                for brick in volume.bricks_here()]

    @property
    def title(self) -> str:
        """For people: the name, with the brick's number if there are several."""
        return self.name if self.part is None else f"{self.name}, brick {self.part.brick}"

    @property
    def own(self) -> str:
        """The folder of the worker alone."""
        return self.folder if self.part is None else os.path.join(self.folder, f"brick_{self.part.brick}")

    @property
    def together(self) -> str:
        """The directory of all workers of which only one is active at a time."""
        return self.shared if self.part is None else os.path.join(self.shared, f"subvol_{self.part.subvolume}")

    @property
    def on_meta_volume(self) -> bool:
        return self.shared != self.folder

    # of this node

    @property
    def changelog_db(self) -> str:
        return os.path.join(self.own, "changelog.db")

    @property
    def worker_status(self) -> str:
        return os.path.join(self.own, "worker.status")

    @property
    def worker_lock(self) -> str:
        return os.path.join(self.own, "worker.lock")

    @property
    def run_lock(self) -> str:
        """Held by the `gsync run` of this session."""
        return os.path.join(self.folder, "run.lock")

    @property
    def log(self) -> str:
        return os.path.join(self.own, "log")

    @property
    def key(self) -> str:
        """The session's own ssh key, if it has one; the public half beside it, .pub."""
        return os.path.join(self.folder, "key")

    # of all nodes

    @property
    def config(self) -> str:
        return os.path.join(self.shared, "gsync.conf")

    @property
    def wanted(self) -> str:
        return os.path.join(self.shared, "wanted")

    @property
    def checkpoint(self) -> str:
        return os.path.join(self.shared, "checkpoint")

    @property
    def checkpoint_reached(self) -> str:
        return os.path.join(self.together, "checkpoint.reached")

    @property
    def ledger_db(self) -> str:
        """On the meta volume there is one for each epoch; this is the latest."""
        if not self.on_meta_volume:
            return os.path.join(self.together, "ledger.db")
        return os.path.join(self.together, f"ledger.{max(ledger_epochs(self.together), default=0)}.db")

    def ledger_dbs(self, volume: Volume) -> list[str]:
        """The ledgers of all subvolumes that have one."""
        if volume.gluster is None:
            return [self.ledger_db]
        alls = (dataclasses.replace(self, part=Part(0, n, several=True)).ledger_db
                for n in range(volume.gluster.subvolumes))
        return [path for path in alls if os.path.exists(path)]

    @property
    def lease(self) -> str:
        """A directory in which workers of several nodes agree which one is active."""
        slave = re.sub(r"[^A-Za-z0-9.]+", "-", self.slave).strip("-")[:100]
        number = 0 if self.part is None else self.part.subvolume
        return os.path.join(self.shared, f"{self.volume}_{slave}_subvol_{number}.lock")

    @property
    def meta_volume_mnt(self) -> str:
        return os.path.abspath(os.path.join(self.shared, *[os.pardir] * 3))

    @property
    def epoch(self) -> str:
        return os.path.join(self.together, "epoch")

    @property
    def gsyncd(self) -> str:
        """Holds the id by which GlusterFS's own geo-replication knows the slave, if this session continues it."""
        return os.path.join(self.shared, "gsyncd")

    def gsyncd_slave(self) -> str | None:
        """That id; None for any other session. A damaged file says nothing."""
        with suppress(OSError, ValueError), open(self.gsyncd, encoding="ascii") as file:
            return str(UUID(file.read().strip()))
        return None

    @property
    def statuses(self) -> str:
        """A folder with one file per node and brick: worker.status as the other nodes see it."""
        return os.path.join(self.shared, "status")

    def status_of(self, node: str) -> str:
        """The file of this worker, on that node, among them."""
        return os.path.join(self.statuses, node if self.part is None else f"{node}:{self.part.brick}")


class SessionHome:
    """The sessions that this node knows: those of the state directory, and those of the meta volume in the node's
    settings."""

    def __init__(self, home: Home, check: bool = True, clock: Clock = SYSTEM_CLOCK) -> None:
        """Without `check`, wrong settings are replaced by the defaults: for whoever repairs them."""
        self.home = home
        self._check = check
        self._clock = clock
        self._folder = os.path.join(home.path, "sessions")
        self._site: Options | None = None

    @property
    def site(self) -> Options:
        """The settings of this node."""
        if self._site is None:
            self._site = self._options(config.site_paths(self.home.path))
        return self._site

    def find_or_new(self, volume: str, slave: str, name: str | None = None,
                    settings: Mapping[str, Any] | None = None) -> Session:
        """The session of this volume and slave, whatever its name; otherwise a new one, which `save` writes. settings:
        of a new one, by field; they also decide whether it lies on the meta volume."""
        found = next((s for s in self.list() if s.volume == volume and s.slave == slave), None)
        if found is not None:
            return found
        name = check_name("session", name or default_session_name(volume, slave))
        if self._load(name) is not None:
            raise UsageError(f"session {name} already exists, for another master or slave; choose another --name")
        options = config.load_options(config.site_paths(self.home.path), settings)
        folder = os.path.join(self._folder, name)
        shared = os.path.join(options.meta_volume_mnt, GEO_REP, "sessions", name) if options.use_meta_volume else folder
        return Session(folder, shared, name, volume, slave, self._clock.now(), options)

    def save(self, session: Session, settings: Mapping[str, str] | None = None) -> None:
        """Write session.json, durably and in one step; for a session on the meta volume in both places. settings: texts
        by option for the gsync.conf of a new one."""
        values = {"format": FORMAT, "name": session.name, "volume": session.volume, "slave": session.slave,
                  "created": session.created, "shared": session.shared if session.on_meta_volume else None}
        data = json.dumps(values, indent=1).encode("ascii") + b"\n"
        folders = _folders(session)
        if not os.path.exists(os.path.join(session.shared, _FILE)):
            for folder in folders:
                self._prepare(folder, session)
        for folder in folders:
            make_dirs(folder)
        for name, text in (settings or {}).items():
            config.set_value(session.config, name, text)
        for folder in folders:
            replace_file(os.path.join(folder, _FILE), data)

    def _prepare(self, folder: str, session: Session) -> None:
        """The directory of a new session: empty, except for what an earlier one of the same volume and slave left."""
        remains = self._remains(folder, session)
        if remains is not None and os.path.isdir(remains):
            _prune(remains, _REMAINS)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(remains, folder)
        else:  # deleted on another node, or never made to the end
            before = _read(os.path.join(folder, _FILE))
            same = before is not None and (before["volume"], before["slave"]) == (session.volume, session.slave)
            _prune(folder, _REMAINS if same else ())

    def _remains(self, folder: str, session: Session) -> str | None:
        """Where a deleted session of this volume and slave left its files, whatever its name was; None for a volume
        that is gone, since its slave accepts no other one."""
        try:
            volume = self.home.get(session.volume)
        except UsageError:
            if os.path.isdir(os.path.join(self.home.path, "volumes", session.volume)):
                raise  # damaged
            return None
        pair = blake2b(os.fsencode(f"{volume.uuid}\0{session.slave}"), digest_size=16).hexdigest()
        return os.path.join(os.path.dirname(folder), _DELETED, pair)

    def remove(self, session: Session, forget: bool = False) -> None:
        """Delete the session, here and on the meta volume. A later session of the same volume and slave resumes from
        what stays: the epoch, which must never shrink; and the failures and doubts that the stime has passed. With
        `forget` only the epoch stays: for a slave that has forgotten its stime."""
        for folder in filter(os.path.isdir, _folders(session)):
            remains = self._remains(folder, session)
            if remains is None:
                shutil.rmtree(folder)
                continue
            make_dirs(os.path.dirname(remains))
            shutil.rmtree(remains, ignore_errors=True)
            os.rename(folder, remains)  # from here on it is no session
            _prune(remains, _EPOCHS if forget else _REMAINS)
            fsync_dir(os.path.dirname(folder))
        with suppress(UsageError, FileNotFoundError):
            os.unlink(os.path.join(self.home.get(session.volume).needed, session.name))

    def get(self, name: str, overrides: Mapping[str, Any] | None = None) -> Session:
        """UsageError if there is no such session, or its file is damaged. overrides: settings that win over its
        files."""
        check_name("session", name)
        session = self._load(name, overrides)
        if session is None:
            raise UsageError(f"no such session: {name}; `gsync status` lists them")
        return session

    def find(self, name: str) -> Session | None:
        """None if there is no such session; UsageError if its files are damaged."""
        return self._load(name)

    def the(self, name: str | None) -> Session:
        """The session of this name; without a name, the only session. UsageError."""
        if name is not None:
            return self.get(name)
        sessions = self.list()
        if len(sessions) != 1:
            raise UsageError("there are no sessions; create one with gsync create MASTER SLAVE" if not sessions else
                             "name a session: " + ", ".join(session.name for session in sessions))
        return sessions[0]

    def names(self) -> list[str]:
        """The names of all sessions, without reading them."""
        found: set[str] = set()
        for folder in (self._folder, self._on_meta_volume()):
            if folder is not None and os.path.isdir(folder):
                found.update(name for name in os.listdir(folder) if not name.startswith("."))
        return sorted(found)

    def list(self) -> list[Session]:
        """All sessions, by name."""
        loaded = (self._load(name) for name in self.names())
        return [session for session in loaded if session is not None]

    def _on_meta_volume(self) -> str | None:
        """The directory of all nodes' sessions, if this node has a meta volume."""
        if not self.site.use_meta_volume:
            return None
        return os.path.join(self.site.meta_volume_mnt, GEO_REP, "sessions")

    def _load(self, name: str, overrides: Mapping[str, Any] | None = None) -> Session | None:
        folder = os.path.join(self._folder, name)
        values = _read(os.path.join(folder, _FILE))
        shared = folder
        if values is not None:
            shared = str(values["shared"] or folder)
            if os.path.isdir(os.path.dirname(shared)) and not os.path.exists(os.path.join(shared, _FILE)):
                return None  # deleted on another node
        elif (there := self._on_meta_volume()) is not None:
            shared = os.path.join(there, name)
            values = _read(os.path.join(shared, _FILE))
        if values is None:
            return None
        options = self._options([*config.site_paths(self.home.path), os.path.join(shared, "gsync.conf")], overrides)
        return Session(folder, shared, name, values["volume"], values["slave"], values["created"], options)

    def _options(self, paths: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Options:
        try:
            return config.load_options(paths, overrides)
        except UsageError:
            if self._check:
                raise
            return Options()


def _folders(session: Session) -> list[str]:
    """The shared one first."""
    return list(dict.fromkeys((session.shared, session.folder)))


def _prune(folder: str, kept: Sequence[str]) -> None:
    """Remove everything except these names (patterns). The directory may be missing."""
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if any(fnmatch(entry.name, pattern) for pattern in kept):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _read(path: str) -> dict[str, Any] | None:
    """The contents of session.json; None if there is none. UsageError if it is damaged."""
    try:
        with open(path, encoding="ascii") as file:
            values = json.load(file)
        if values["format"] != FORMAT:
            raise UsageError(f"{path}: format {values['format']} is unknown to this version of gsync; upgrade gsync")
        return {"volume": str(values["volume"]), "slave": str(values["slave"]), "created": int(values["created"]),
                "shared": values["shared"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: damaged: {exc!r}") from exc
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc
