"""The format version of a state directory, in its file `format`: migrates an older folder and refuses a newer one.

Promise: if killed at any moment, the next start repeats the migration and loses nothing. The steps handle files as
those versions wrote them and use no code that a later version may change.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from typing import Any

from gsync.base import ini
from gsync.base.durable import make_dirs, replace_file
from gsync.base.errors import LockedError, UsageError
from gsync.base.log import get_logger
from gsync.base.process import Lock

VERSION = 2
_log = get_logger(__name__)


def check(path: str, step: Callable[[str], None] = lambda name: None) -> None:
    """Migrate the state directory to VERSION; fine if it does not exist yet. Calls `step` before each durable step.

    UsageError: a newer gsync made it, or it cannot be read or migrated. LockedError: one of its sessions is running.
    """
    try:
        version = _version(path)
        if version is None or version == VERSION:
            return
        if version > VERSION:
            raise UsageError(f"state directory {path}: format {version} was made by a newer gsync; this one supports "
                             f"formats up to {VERSION}: use the newer gsync, or another folder with --state")
        _migrate(path, step)
    except OSError as exc:
        where = exc.filename if isinstance(exc.filename, str) else path
        raise UsageError(f"state directory {path}: {where}: {exc.strerror}") from None


def mark(path: str) -> None:
    """Create a new state directory with its version, before anything else goes into it. UsageError."""
    try:
        if not os.path.lexists(_file(path)):
            make_dirs(path)
            replace_file(_file(path), b"%d\n" % VERSION)
    except OSError as exc:
        raise UsageError(f"state directory {path}: {exc.strerror}; choose another one with --state or $GSYNC_HOME") \
            from None


def _file(path: str) -> str:
    return os.path.join(path, "format")


def _version(path: str) -> int | None:
    """The version of the folder; None if it holds nothing that has one."""
    try:
        with open(_file(path), encoding="ascii") as file:
            return int(file.read())
    except ValueError:
        raise UsageError(f"{_file(path)}: damaged: it holds no number") from None
    except FileNotFoundError:
        return 1 if any(os.path.isdir(os.path.join(path, name)) for name in ("volumes", "sessions")) else None


def _migrate(path: str, step: Callable[[str], None]) -> None:
    fd = os.open(os.path.join(path, "format.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # another one may be at it
        if _version(path) == 1:
            _from_1(path, step)
            step("format")
            replace_file(_file(path), b"2\n")
    finally:
        os.close(fd)


# 1 to 2: the options of a session move from its session.json to its gsync.conf

_DEFAULTS_OF_1: dict[str, Any] = {
    "sync_method": "auto", "sync_jobs": 2, "exclude": [], "bandwidth_limit": 0, "delete_retention": 0, "max_delete": 0,
    "adopt": False, "slave_timeout": 120, "ssh_config": "", "ssh_port": 0, "compression": False,
    "changelog_batch_size": 727040, "log_level": "INFO"}


def _from_1(path: str, step: Callable[[str], None]) -> None:
    sessions = os.path.join(path, "sessions")
    old = []
    for name in sorted(os.listdir(sessions)) if os.path.isdir(sessions) else []:
        folder = os.path.join(sessions, name)
        values = _session_of_1(os.path.join(folder, "session.json"))
        if values is None:
            continue
        for lock in ("run.lock", "worker.lock"):
            pid = Lock(os.path.join(folder, lock), name).holder()
            if pid is not None:
                raise LockedError(f"session {name}: runs with an older gsync, pid {pid}; stop it, so that the state "
                                  f"directory {path} can be brought to format 2")
        old.append((folder, values))
    for folder, values in old:
        text = "".join(f"{line}\n" for option, value in values.pop("options").items()
                       if value != _DEFAULTS_OF_1.get(option)
                       for line in ini.written(ini.option_name(option), _text_of_1(value)))
        if text:
            step("settings")
            replace_file(os.path.join(folder, "gsync.conf"),
                         f"[{ini.SECTION}]\n{text}".encode("utf-8", "surrogateescape"))
        step("session")
        data = json.dumps({**values, "format": 2, "shared": None}, indent=1).encode("ascii") + b"\n"
        replace_file(os.path.join(folder, "session.json"), data)
        _log.info("migrated to format 2", session=os.path.basename(folder))


def _session_of_1(path: str) -> dict[str, Any] | None:
    """What session.json says; None if there is none, or it is of another format."""
    try:
        with open(path, encoding="ascii") as file:
            values = json.load(file)
        if values["format"] != 1:
            return None
        return {**values, "options": dict(values["options"])}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: damaged: {exc!r}") from exc


def _text_of_1(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(ini.pattern_line(line) for pattern in value for line in str(pattern).split("\n")
                         if line.strip() and not line.startswith("#"))
    return str(value).lower() if isinstance(value, bool) else str(value)
