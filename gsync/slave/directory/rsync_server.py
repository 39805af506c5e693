"""rsync's side at the slave: `agent --rsync ROOT EPOCH TICKET ... --server ...` becomes rsync in .gsync/limbo/link.

It takes the receivers' lock, shows its pass, enters the folder by descriptor and passes lock and folder on to rsync. So
a younger hello ends it like any receiver. Its paths are names in that one folder, which holds regular files only (links
to files that the agent exposes, and new files). Where the kernel has Landlock, it could not change anything else even
if it tried. Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence

from gsync.base.errors import GsyncError, SlaveError, Transient
from gsync.slave.directory.folders import OPEN_DIR, open_state
from gsync.slave.directory.landlock import confine
from gsync.slave.fence import RECEIVERS_LOCK, open_lock, show, take_shared

PATH = "/usr/local/bin:/usr/bin:/bin"

# The options that gsync's engine gives a server, for any rsync from 3.1 on, and those of rsync-options that do no harm
# there. None of them makes links, directories or devices, deletes, or names another file.
_HARMLESS = re.compile(r"-[ISWvz]*e[0-9]*\.[A-Za-z]*|--(stats|inplace|open-noatime|fsync|bwlimit=[0-9.]+[KMGkmg]?|"
                       r"timeout=[0-9]+|compress-choice=[a-z0-9]+|compress-level=-?[0-9]+|(new|old)-compress|"
                       r"checksum-choice=[a-z0-9]+)")


def check_argv(words: Sequence[str]) -> None:
    """Raise SlaveError unless this is `--server OPTION... . .` with options of gsync's engine only."""
    if len(words) < 4 or words[0] != "--server" or list(words[-2:]) != [".", "."]:
        raise SlaveError("not rsync's server side as gsync calls it")
    for word in words[1:-2]:
        if not _HARMLESS.fullmatch(word):
            raise SlaveError(f"rsync's option {word!r} is not allowed here")


def become_rsync(root: bytes, epoch: int, ticket: str, words: Sequence[str], path: str | None = None) -> None:
    """Returns only by raising an error. path: where to look for rsync (None: as usual)."""
    program = shutil.which("rsync", path=path)
    if program is None:
        raise SlaveError("rsync is not installed here")
    state_fd = open_state(root)
    lock_fd = open_lock(state_fd, RECEIVERS_LOCK)
    take_shared(lock_fd)
    show(state_fd, epoch, ticket).close()  # after the lock: whoever displaces us from now on finds us
    limbo_fd = os.open(b"limbo", OPEN_DIR, dir_fd=state_fd)
    folder = os.open(b"link", OPEN_DIR, dir_fd=limbo_fd)
    os.fchdir(folder)
    confine([folder], ["/dev/null"])
    os.set_inheritable(lock_fd, True)
    os.umask(0o077)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
    os.execve(program, ["rsync", *words], {**env, "LC_ALL": "C"})


def main(arguments: Sequence[str], *, strict: bool = False) -> int:
    """ROOT EPOCH TICKET, then rsync's own words before and after `--server`; strict: only options of gsync's engine."""
    try:
        root, epoch, ticket = os.fsencode(arguments[0]), int(arguments[1]), arguments[2]
        words = list(arguments[3:])
        words = words[words.index("--server"):]
        if strict:
            check_argv(words)
        become_rsync(root, epoch, ticket, words, PATH if strict else None)
    except (IndexError, ValueError):
        print("usage: agent --rsync ROOT EPOCH TICKET --server ...", file=sys.stderr)
        return 2
    except BlockingIOError:
        print("an agent is starting there", file=sys.stderr)
        return Transient.exit_code
    except GsyncError as exc:
        print(exc, file=sys.stderr)
        return exc.exit_code
    except OSError as exc:
        print(f"{exc.filename or 'rsync'}: {exc.strerror}", file=sys.stderr)
        return SlaveError.exit_code
    return 0
