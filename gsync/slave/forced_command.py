"""Limits what a session's own ssh key may do: `agent --forced DIR`, its forced command in authorized_keys.

It understands four commands in SSH_ORIGINAL_COMMAND, word by word, without a shell: `gsync probe`, `gsync agent`,
`gsync receive` and `gsync rsync EPOCH TICKET --server ...`. All of them work in DIR and nowhere else, and no symlink
may lead to DIR. Anything else is refused with one line. Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys

import gsync
from gsync.base import rpc
from gsync.base.fsid import open_beneath
from gsync.slave.directory import rsync_server
from gsync.slave.target import is_volume

REFUSED = 77  # exit status, known to gsync/link/ssh.py
_ENVIRONMENT = "SSH_ORIGINAL_COMMAND"
_COMMAND = re.compile(rb"gsync( [A-Za-z0-9.,=_+-]+)+")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Refused(Exception):
    """The command is not one that this key allows."""


def main(folder: bytes) -> int:
    try:
        words = _words()
        if words == ["probe"]:
            return _probe(folder)
        if is_volume(folder) and words in (["agent"], ["receive"]):
            return _for_volume(folder, words[0])
        if words == ["agent"]:
            return _agent(_enter(folder, may_be_missing=True))
        if words == ["receive"]:
            from gsync.slave import receive

            return receive.main(_enter(folder))
        if words[0] == "rsync" and not is_volume(folder) and len(words) > 3:
            return rsync_server.main([os.fsdecode(_enter(folder)), *words[1:]], strict=True)
        raise _Refused("not allowed with this key")
    except _Refused as exc:
        print(f"gsync: refused: {exc}", file=sys.stderr)
        return REFUSED


def _for_volume(volume: bytes, word: str) -> int:
    from gsync.slave import receive, serve

    return serve.run(volume) if word == "agent" else receive.main(volume)


def _words() -> list[str]:
    asked = os.environb.get(_ENVIRONMENT.encode())
    if asked is None:
        raise _Refused("this key is for gsync only; it gives no shell")
    if not _COMMAND.fullmatch(asked):
        raise _Refused("not allowed with this key")
    return asked.decode("ascii").split(" ")[1:]


def _enter(folder: bytes, *, may_be_missing: bool = False) -> bytes:
    """Make DIR the working directory, reached through no symlink; return its name from there. If only its last part is
    missing, the agent may be asked to make it: then enter the folder above."""
    path = os.path.normpath(folder)
    if not path.startswith(b"/") or path == b"/":
        raise _Refused("the forced command names no directory")
    root = os.open(b"/", _OPEN)
    above, name = os.path.split(path[1:])
    try:
        os.fchdir(open_beneath(root, path[1:], _OPEN))
        return b"."
    except FileNotFoundError:
        if not may_be_missing:
            raise _Refused("the directory of this key does not exist") from None
        try:
            os.fchdir(open_beneath(root, above, _OPEN) if above else root)
        except OSError as exc:
            raise _Refused(f"the directory of this key cannot be opened: {exc.strerror}") from exc
        if os.path.lexists(name):
            raise _Refused("the directory of this key is being created") from None
        return b"./" + name
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _Refused("the path to the directory of this key leads through a symlink or a file: use its real path"
                           ) from None
        raise _Refused(f"the directory of this key cannot be opened: {exc.strerror}") from exc


def _agent(root: bytes) -> int:
    from gsync.slave import serve

    return serve.run(root)


def _probe(folder: bytes) -> int:
    """Report on this host in the format that SshLink reads. Then stay: the connection stands until the other end
    goes."""
    lines = ["gsync-probe", f"protocol {rpc.PROTOCOL}", f"gsync {gsync.__version__} {_fingerprint()}",
             f"directory {folder.hex()}", f"python {sys.version.split()[0]} {sys.executable}"]
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            if re.search(r"^(flags|Features)\s*:.*\baes\b", file.read(), re.M):
                lines.append("aes")
    except OSError:
        pass
    if shutil.which("rsync", path=rsync_server.PATH):
        lines.append("rsync")
    print("\n".join([*lines, "end"]), flush=True)
    while os.read(0, 1 << 16):
        pass
    return 0


def _fingerprint() -> str:
    """The identity of this agent, if it is a zipapp."""
    try:
        if stat.S_ISREG(os.stat(sys.argv[0]).st_mode):
            with open(sys.argv[0], "rb") as file:
                return hashlib.sha256(file.read()).hexdigest()[:20]
    except OSError:
        pass
    return "-"
