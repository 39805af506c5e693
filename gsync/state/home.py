"""Where gsync keeps its state, and the volumes in it: `$GSYNC_HOME/volumes/<name>/`.

A volume stores the identity of its root (file handle, file system ids). So gsync never mistakes another tree at the
same path, above all an empty mount point, for the volume with everything deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from gsync.base.durable import fsync_dir, make_dirs, replace_file
from gsync.base.errors import Faulty, LockedError, UsageError
from gsync.base.fsid import Handles, birth_time
from gsync.base.process import Lock
from gsync.state import format as folder_format
from gsync.state.gluster import BrickAt, GlusterInfo, node_uuid

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_NO_IDENTITY = ("cannot be a master: its file system keeps no inode numbers (FAT, exFAT and FUSE do not), so nobody "
                "could tell what was renamed or replaced there")
_FS_IOC_GETFSUUID = 0x80111500  # struct fsuuid2 {u8 len; u8 uuid[16]}, Linux 6.9


def check_name(what: str, name: str) -> str:
    """The name itself if it may name a volume (or session), else a UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{what} {name!r}: a name is made of letters, digits and . _ @ + - and starts with one of "
                         "the first two")
    return name


class NotThere(Faulty):
    """A volume's tree is not at its path."""


@dataclass(frozen=True)
class Brick:
    """The files of one brick of a volume. root: of a brick of GlusterFS, which writes its changelogs itself."""

    folder: str
    root: str = ""

    @property
    def changelogs(self) -> str:
        return os.path.join(self.root, ".glusterfs", "changelogs") if self.root else \
            os.path.join(self.folder, "changelogs")

    @property
    def archive(self) -> str:
        """Old changelogs, in a tar file a month."""
        return os.path.join(self.folder, "archive")

    @property
    def namespace(self) -> str:
        return os.path.join(self.folder, "namespace.db")

    @property
    def status(self) -> str:
        return os.path.join(self.folder, "recorder.status")

    @property
    def ctl(self) -> str:
        """A FIFO: a byte written to it asks the recorder for a cut."""
        return os.path.join(self.folder, "recorder.ctl")

    @property
    def lock(self) -> str:
        return os.path.join(self.folder, "recorder.lock")

    @property
    def log(self) -> str:
        """The recorder's log, if a monitor started it; recorder.stderr beside it holds its last output."""
        return os.path.join(self.folder, "recorder.log")

    @property
    def stderr(self) -> str:
        return os.path.join(self.folder, "recorder.stderr")

    @property
    def gaps(self) -> str:
        """How often the recording was interrupted, durable."""
        return os.path.join(self.folder, "recorder.gaps")


@dataclass(frozen=True)
class Volume:
    """A named tree, as in its volume.json. `root` is the handle of the root directory. gluster: set for kind "gluster"
    only; then uuid is GlusterFS's own, tag and root are empty, and path is for people.
    """

    folder: str
    name: str
    path: str
    uuid: str
    tag: bytes
    root: bytes
    file_system: Mapping[str, str] = field(default_factory=dict)
    kind: str = "posix"
    gluster: GlusterInfo | None = None

    def brick(self, number: int = 0) -> Brick:
        root = self.gluster.bricks[number].path if self.gluster else ""
        return Brick(os.path.join(self.folder, "bricks", str(number)), root)

    def bricks_here(self) -> list[BrickAt]:
        """The bricks of a GlusterFS volume that this node has."""
        here = node_uuid()
        return [brick for brick in self.gluster.bricks if brick.node == here] if self.gluster else []

    @property
    def needed(self) -> str:
        """A folder with one file per session that uses the volume: its stime in ns, decimal."""
        return os.path.join(self.folder, "needed")

    def needed_from(self) -> int | None:
        """The oldest stime that a session may resume from, None if there is none."""
        try:
            names = [name for name in os.listdir(self.needed) if not name.startswith(".")]
        except FileNotFoundError:
            return None
        stimes = []
        for name in names:
            try:
                with open(os.path.join(self.needed, name), encoding="ascii") as file:
                    stimes.append(int(file.read()))
            except FileNotFoundError:
                continue
            except ValueError:
                stimes.append(0)  # damaged: keep everything
        return min(stimes, default=None)

    def open_root(self) -> int:
        """A descriptor of the root; NotThere if the tree at the path is not this volume's."""
        why = f"root of volume {self.name} at {self.path}"
        rest = "nothing was recorded as deleted"
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotThere(f"{why} is gone (not mounted?); {rest}") from None
        except NotADirectoryError:
            raise NotThere(f"{why} is not a directory any more; {rest}") from None
        except OSError as exc:
            raise NotThere(f"{why}: {exc.strerror}; {rest}") from None
        try:
            ids = file_system_ids(fd)
            if not _same_file_system(self.file_system, ids):
                raise NotThere(f"{why} is on another file system than before (not mounted, or something else is?); "
                               f"{rest}. If it is the volume all the same, remove the volume and add it again")
            handles = Handles(fd)
            if not handles.lasting:
                raise NotThere(f"{why} {_NO_IDENTITY}; {rest}")
            if handles.root != self.root:
                raise NotThere(f"{why} is another directory than before (not mounted, or replaced?); {rest}. If it is "
                             "the volume all the same, remove the volume and add it again")
            if not _same_birth(self.file_system, ids):
                raise NotThere(f"{why} is on a file system that was made anew under the old id; {rest}. If it is the "
                               "volume all the same, remove the volume and add it again")
        except BaseException:
            os.close(fd)
            raise
        if "born" in ids and "born" not in self.file_system:
            with suppress(UsageError):  # a volume of gsync 0.1 that agrees in all else is believed once
                _write(replace(self, file_system=dict(self.file_system, born=ids["born"])))
        return fd


def file_system_ids(fd: int) -> dict[str, str]:
    """Ids of the tree at fd that survive a boot. Of its file system: "fsid", and "uuid" if the system tells it. Of its
    root: "born", which a new file system with the old uuid does not repeat (rule 47)."""
    ids = {"fsid": f"{os.fstatvfs(fd).f_fsid:x}"}
    born = birth_time(fd)
    if born is not None:
        ids["born"] = f"{born[0]}.{born[1]:09}"
    found = _uuid_by_ioctl(fd) or _uuid_by_device(os.fstat(fd).st_dev)
    if found:
        ids["uuid"] = found
    return ids


def _uuid_by_ioctl(fd: int) -> str | None:
    answer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
    except OSError:
        return None
    value = bytes(answer[1:1 + answer[0]])
    return str(uuid.UUID(bytes=value)) if len(value) == 16 and any(value) else None


def _uuid_by_device(dev: int) -> str | None:
    folder = "/dev/disk/by-uuid"
    try:
        return next((name.lower() for name in os.listdir(folder)
                     if os.stat(os.path.join(folder, name)).st_rdev == dev), None)
    except OSError:
        return None


def _same_file_system(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Compares the best id that both have. An fsid may contain the device number, which a boot may change."""
    for kind in ("uuid", "fsid"):
        if kind in then and kind in now:
            return then[kind] == now[kind]
    return True


def _same_birth(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
    return then.get("born", now.get("born")) == now.get("born", then.get("born"))


def same_tree(one: Volume, other: Volume) -> bool:
    """Whether the roots of two volumes are one directory, seen from two nodes."""
    then, now = one.file_system, other.file_system
    return one.root == other.root and _same_file_system(then, now) and _same_birth(then, now)


class Home:
    """The state directory: `path`, or the one that `default_path` names, migrated to the format of this gsync."""

    def __init__(self, path: str | None = None) -> None:
        self.path = os.path.abspath(path or default_path(os.environ))
        folder_format.check(self.path)
        self._volumes = os.path.join(self.path, "volumes")

    def add(self, name: str, path: str) -> Volume:
        """Register the directory `path` as a volume."""
        return self.keep(self.new(name, path))

    def new(self, name: str, path: str) -> Volume:
        """The volume that the directory `path` would become. Writes nothing."""
        check_name("volume", name)
        if self._load(name) is not None:
            raise UsageError(f"volume {name}: already exists")
        real = os.path.realpath(path)
        for other in self.list():
            if other.path == real:
                raise UsageError(f"volume {name}: {path} is volume {other.name} already")
        try:
            fd = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise UsageError(f"volume {name}: {path}: {exc.strerror}") from None
        try:
            handles = Handles(fd)
            if not handles.lasting:
                raise UsageError(f"volume {name}: {path} {_NO_IDENTITY}")
            return Volume(os.path.join(self._volumes, name), name, real, str(uuid.uuid4()), secrets.token_bytes(4),
                          handles.root, file_system_ids(fd))
        finally:
            os.close(fd)

    def new_gluster(self, name: str, info: GlusterInfo) -> Volume:
        """The volume that this GlusterFS volume would become. Writes nothing."""
        check_name("volume", name)
        if self._load(name) is not None:
            raise UsageError(f"volume {name}: already exists")
        for other in self.list():
            if other.uuid == info.volume_id:
                raise UsageError(f"volume {name}: GlusterFS volume {info.name} is volume {other.name} already")
        return Volume(os.path.join(self._volumes, name), name, f"gluster volume {info.name}", info.volume_id, bytes(4),
                      b"", kind="gluster", gluster=info)

    def keep(self, volume: Volume) -> Volume:
        """Register a volume that `new` returned, durably."""
        folder_format.mark(self.path)
        _write(volume)
        return volume

    def get(self, name: str) -> Volume:
        """UsageError if there is no such volume, or its file is damaged."""
        volume = self._load(check_name("volume", name))
        if volume is None:
            raise UsageError(f"no such volume: {name}; `gsync volume list` shows them")
        return volume

    def list(self) -> list[Volume]:
        """All volumes, by name."""
        try:
            names = sorted(os.listdir(self._volumes))
        except FileNotFoundError:
            return []
        loaded = (self._load(name) for name in names if _NAME.fullmatch(name))
        return [volume for volume in loaded if volume is not None]

    def at_path(self, path: str) -> Volume | None:
        """The volume whose tree is at `path`."""
        real = os.path.realpath(path)
        return next((volume for volume in self.list() if volume.path == real), None)

    def remove(self, name: str) -> None:
        """Remove a volume with its changelogs and index, not its tree. LockedError while its recorder runs."""
        volume = self.get(name)
        pid = Lock(volume.brick().lock, "recorder").holder()
        if pid is not None:
            raise LockedError(f"volume {name}: its recorder is running, pid {pid}; stop it first")
        os.unlink(_file(volume.folder))  # from here on it is no volume
        fsync_dir(volume.folder)
        shutil.rmtree(volume.folder)

    def _load(self, name: str) -> Volume | None:
        folder = os.path.join(self._volumes, name)
        try:
            with open(_file(folder), encoding="ascii") as file:
                values: dict[str, Any] = json.load(file)
            if values["format"] != FORMAT:
                raise UsageError(f"{_file(folder)}: format {values['format']} is not supported by this gsync")
            ids = {str(k): str(v) for k, v in values["file_system"].items()}
            tag = bytes.fromhex(values["tag"])
            if len(tag) != 4:
                raise ValueError("tag")
            return Volume(folder, name, str(values["path"]), str(uuid.UUID(values["uuid"])), tag,
                          bytes.fromhex(values["root"]), ids, str(values["kind"]),
                          GlusterInfo.from_json(values["gluster"]) if "gluster" in values else None)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UsageError(f"{_file(folder)}: damaged: {exc!r}") from exc
        except OSError as exc:
            raise UsageError(f"{_file(folder)}: {exc.strerror}") from exc


def default_path(environ: Mapping[str, str]) -> str:
    """$GSYNC_HOME, else /var/lib/gsync for root, else the user's state directory."""
    if environ.get("GSYNC_HOME"):
        return environ["GSYNC_HOME"]
    if os.geteuid() == 0:
        return "/var/lib/gsync"
    state = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "gsync")


def _write(volume: Volume) -> None:
    values: dict[str, Any] = {
        "format": FORMAT, "name": volume.name, "kind": volume.kind, "path": volume.path, "uuid": volume.uuid,
        "tag": volume.tag.hex(), "root": volume.root.hex(), "file_system": dict(volume.file_system)}
    if volume.gluster:
        values["gluster"] = volume.gluster.to_json()
    try:
        make_dirs(volume.folder)
        replace_file(_file(volume.folder), json.dumps(values, indent=1).encode("ascii") + b"\n")
    except OSError as exc:
        raise UsageError(f"{_file(volume.folder)}: {exc.strerror}") from None


def _file(folder: str) -> str:
    return os.path.join(folder, "volume.json")
