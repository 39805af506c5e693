"""Whose tree it is: takes a directory as one volume's slave, or says in one line why not; and finds out its abilities.

Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import replace_file
from gsync.base.errors import SlaveError
from gsync.base.fsid import whereabouts
from gsync.base.model import NS, STATE_DIR, shown
from gsync.link.protocol import Caps, stream_of
from gsync.slave import fence
from gsync.slave.directory.folders import OPEN_DIR, make_state, place_of
from gsync.slave.outcome import succeeds

_FORMAT = 1
_NOT_OURS = (STATE_DIR, b"lost+found")
_ROOM = 4 << 20  # bytes that recovery may need


class Taken:
    """A slave tree in which nobody else works until this is closed, or displaced by a younger connection (its pass
    tells). empty: it contains only gsync's own folder."""

    def __init__(self, root: bytes, lock_fd: int, own: fence.Pass, empty: bool) -> None:
        self.root = root
        self.own = own
        self.empty = empty
        self._lock_fd = lock_fd

    def close(self) -> None:
        os.close(self._lock_fd)
        self.own.close()


def take(root: bytes, volume: str, volume_name: str, adopt: bool, make: bool = False, *, session: str = "",
         epoch: int = 0, ticket: str = "", patience: fence.Patience = fence.PATIENCE,
         clock: Clock = SYSTEM_CLOCK) -> Taken:
    """Take ROOT as the slave of this volume, from an older connection of the session if necessary; with `make`, create
    it if only its last folder is missing. If it cannot be this volume's slave, SlaveError tells why, and nothing was
    written. Fenced: a younger connection has it."""
    if make:
        with suppress(OSError):  # opening it gives the reason
            os.mkdir(root, 0o755)
    root_fd = open_root(root)
    try:
        known, empty = inspect(root_fd, volume, adopt)
        state_fd = _make_state(root_fd)
        try:
            lock_fd, own = _lock(state_fd, session, epoch, ticket or secrets.token_hex(8), patience)
            taken = Taken(root, lock_fd, own, empty)
            try:
                _make_room(state_fd)
                if known is None:
                    _write_identity(state_fd, volume, volume_name, clock.now() // NS)
            except BaseException:
                taken.close()
                raise
        finally:
            os.close(state_fd)
    finally:
        os.close(root_fd)
    return taken


def look(root: bytes, volume: str, adopt: bool, make: bool) -> bool:
    """Whether ROOT is already the slave of this volume. SlaveError where `take` would refuse it; writes nothing."""
    if make and not os.path.lexists(root) and os.path.isdir(os.path.dirname(root)):
        return False
    root_fd = open_root(root)
    try:
        return inspect(root_fd, volume, adopt)[0] is not None
    finally:
        os.close(root_fd)


def keep_apart(root: bytes, boot_id: str, master: Sequence[Sequence[int]]) -> None:
    """Raise SlaveError if ROOT and the master with these whereabouts are on one host and one contains the other."""
    exists = os.path.isdir(root)
    mine, above = whereabouts(root if exists else os.path.dirname(root))
    if mine and mine == boot_id and above and master:
        if tuple(master[0]) in above:
            raise SlaveError("it is the master itself, on this very host, or lies in it: choose another directory")
        if exists and list(above[0]) in [list(place) for place in master]:
            raise SlaveError("the master lies in it, on this very host: choose another directory")


def inspect(root_fd: int, volume: str, adopt: bool) -> tuple[dict[str, object] | None, bool]:
    """The identity of the tree, if it has one, and whether it is empty; SlaveError if it cannot be this volume's
    slave."""
    known = _read_identity(root_fd)
    if known is not None and known.get("volume") != volume:
        raise SlaveError(f"it is the slave of another volume, {known.get('volume_name')} ({known.get('volume')})")
    empty = not any(name not in _NOT_OURS for name in map(os.fsencode, os.listdir(root_fd)))
    if known is None and not empty and not adopt:
        raise SlaveError("it is neither empty nor a gsync slave: use an empty directory, or --adopt to take over "
                         "an existing copy")
    return known, empty


def open_root(root: bytes) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SlaveError(f"no such directory: {shown(root)}; create it, or mount its file system") from None
    except NotADirectoryError:
        raise SlaveError(f"{shown(root)} is not a directory") from None
    except OSError as exc:
        raise SlaveError(f"{shown(root)} cannot be opened: {exc.strerror}") from exc


def _read_identity(root_fd: int) -> dict[str, object] | None:
    try:
        state_fd = os.open(STATE_DIR, OPEN_DIR, dir_fd=root_fd)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise SlaveError(f"{shown(STATE_DIR)} in it is not a directory, but the name is gsync's own") from exc
        raise SlaveError(f"{shown(STATE_DIR)} in it cannot be opened: {exc.strerror}") from exc
    try:
        fd = os.open(b"identity", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state_fd)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SlaveError(f"{shown(STATE_DIR)}/identity cannot be read: {exc.strerror}") from exc
    finally:
        os.close(state_fd)
    with open(fd, "rb") as file:
        try:
            known = json.load(file)
            form = int(known["format"])
        except (ValueError, KeyError, TypeError) as exc:
            raise SlaveError(f"{shown(STATE_DIR)}/identity is damaged: {exc}") from exc
    if form > _FORMAT:
        raise SlaveError(f"its state has format {form}, written by a newer gsync: upgrade gsync here")
    return dict(known)


def _make_state(root_fd: int) -> int:
    lifted = None
    st = os.fstat(root_fd)
    try:
        if os.geteuid() and st.st_uid == os.geteuid() and st.st_mode & 0o700 != 0o700:
            lifted = stat.S_IMODE(st.st_mode)  # replicated from a master whose owner may not write its root
            os.fchmod(root_fd, lifted | 0o700)
        return make_state(root_fd)
    except OSError as exc:
        if exc.errno == errno.EROFS:
            raise SlaveError("its file system is read-only: mount it writable") from exc
        raise SlaveError(f"it cannot be written to: {exc.strerror}") from exc
    finally:
        if lifted is not None:
            with suppress(OSError):
                os.fchmod(root_fd, lifted)


def _lock(state_fd: int, session: str, epoch: int, ticket: str, patience: fence.Patience) -> tuple[int, fence.Pass]:
    lock_fd = fence.open_lock(state_fd, fence.AGENT_LOCK)
    try:
        stream = stream_of(ticket)
        fence.wait_for_others(lock_fd, session, stream, patience)
        own = fence.announce(state_fd, epoch, ticket)
        try:
            fence.lock_agent(lock_fd, own, session, stream, patience)
        except BaseException:
            own.close()
            raise
    except BaseException:
        os.close(lock_fd)
        raise
    return lock_fd, own


def _make_room(state_fd: int) -> None:
    """On a full disk, delete files that were being received: otherwise the index, which recovery must write to, could
    never grow again. These files count for nothing (rule 23)."""
    free = os.fstatvfs(state_fd)
    if free.f_bavail * free.f_frsize >= _ROOM:
        return
    new_fd = os.open(place_of(state_fd) + b"/limbo/new", OPEN_DIR)
    try:
        for name in os.listdir(new_fd):
            st = os.stat(name, dir_fd=new_fd, follow_symlinks=False)
            if stat.S_ISREG(st.st_mode) and st.st_nlink == 1:
                os.unlink(name, dir_fd=new_fd)
    finally:
        os.close(new_fd)


def _write_identity(state_fd: int, volume: str, volume_name: str, created: int) -> None:
    identity = {"format": _FORMAT, "volume": volume, "volume_name": volume_name, "created": created}
    replace_file(b"identity", json.dumps(identity).encode() + b"\n", dir_fd=state_fd)


# abilities of the file system and the user

ACL_OF_A_PROBE = bytes.fromhex("02000000" "01000600ffffffff" "0200060001000000" "04000400ffffffff" "10000600ffffffff"
                     "20000400ffffffff")  # u::rw- u:1:rw- g::r-- m::rw- o::r--
_SOME_ID = 54321


def probe(state_fd: int, lasting_handles: bool) -> Caps:
    """Find out by trying, in a private folder below .gsync."""
    with suppress(FileExistsError):
        os.mkdir(b"probe", 0o700, dir_fd=state_fd)
    folder = os.open(b"probe", OPEN_DIR, dir_fd=state_fd)
    try:
        _clean(folder)
        os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))
        place = place_of(folder) + b"/file"

        def keeps_ns() -> bool:
            os.utime(b"file", ns=(NS + 123456789, NS + 987654321), dir_fd=folder)
            return os.stat(b"file", dir_fd=folder).st_mtime_ns == NS + 987654321

        def tells_case() -> bool:
            try:
                os.stat(b"FILE", dir_fd=folder)
            except FileNotFoundError:
                return True
            return False

        def keeps_dots() -> bool:
            os.close(os.open(b"dot.", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder))
            return "dot." in os.listdir(folder)

        return Caps(
            root=os.geteuid() == 0,
            chown=succeeds(lambda: os.chown(b"file", _SOME_ID, _SOME_ID, dir_fd=folder)),
            xattr=succeeds(lambda: os.setxattr(place, b"user.gsync", b"1")),
            trusted=succeeds(lambda: os.setxattr(place, b"trusted.gsync.probe", b"1")),
            acl=succeeds(lambda: os.setxattr(place, b"system.posix_acl_access", ACL_OF_A_PROBE)),
            hardlink=succeeds(lambda: os.link(b"file", b"link", src_dir_fd=folder, dst_dir_fd=folder)),
            symlink=succeeds(lambda: os.symlink(b"x", b"symlink", dir_fd=folder)),
            mknod=succeeds(lambda: os.mknod(b"device", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=folder)),
            handles=lasting_handles,
            utime_ns=succeeds(keeps_ns),
            case_sensitive=tells_case(),
            dots=succeeds(keeps_dots),
        )
    finally:
        _clean(folder)
        os.close(folder)
        os.rmdir(b"probe", dir_fd=state_fd)


def _clean(folder: int) -> None:
    for name in os.listdir(folder):
        os.unlink(name, dir_fd=folder)
