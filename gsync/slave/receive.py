"""`agent --receive ROOT`: takes a stream of files from stdin, for a slave directory or a volume.

Promise: it touches nothing before the sender has spoken, and its last answer gives the reason why the stream ended. Not
here: the stream (receiver), where its files go (directory/receive, gluster/receive). Standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable

from gsync.base import rpc
from gsync.base.errors import SlaveError, Transient
from gsync.base.model import shown
from gsync.link.protocol import Fenced
from gsync.link.stream import BadStream
from gsync.slave.directory import receive as directory
from gsync.slave.receiver import Input, Orphaned, Watch
from gsync.slave.target import is_volume, volume_of


def main(root: bytes, watch: Callable[[int], object] = Watch) -> int:
    """Receive for the slave at root until stdin ends; return the exit status. An error is sent as the last answer.
    watch: called with the folder of the locks; see Watch."""
    out = sys.stdout.buffer
    error: dict[str, object]
    try:
        source = Input(sys.stdin.fileno())
        if not source.ensure(1):  # touch nothing before the sender speaks: by then the agent has taken the tree
            return 0
        if is_volume(root):
            from gsync.slave.gluster import receive as gluster

            gluster.receive(volume_of(root), source, out, watch)
        else:
            directory.receive(root, source, out, watch)
        return 0
    except Fenced as exc:
        error = {"type": "fenced", "message": str(exc)}
    except SlaveError as exc:
        error = {"type": "refused", "message": str(exc)}
    except Transient as exc:
        error = {"type": "transient", "message": str(exc)}
    except BlockingIOError:
        error = {"type": "transient", "message": "an agent is starting there"}
    except OSError as exc:
        error = {"type": "io", "message": f"{exc.filename or shown(root)}: {exc.strerror}", "errno": exc.errno}
    except (BadStream, EOFError, Orphaned) as exc:
        error = {"type": "transient", "message": str(exc)}
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(OSError):
        out.write(rpc.encode({"error": error}))
        out.flush()
    return 1
