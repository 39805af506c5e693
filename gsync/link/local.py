"""The link to a slave on this host: programs are children of this process, without a shell."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gsync.base.errors import GsyncError
from gsync.link.link import Channel, Slave, lost

_PACKAGE_PARENT = str(Path(__file__).parents[2])
_AGENT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from gsync.slave.program import main; sys.exit(main())"
_PROGRAM = [sys.executable.encode(), b"-I", b"-c", _AGENT.encode(), _PACKAGE_PARENT.encode()]


class LocalLink:
    """A Link that needs no connection: the agent runs from this very package."""

    def __init__(self, slave: Slave) -> None:
        self.slave = slave

    def spawn(self, argv: Sequence[bytes]) -> Channel:
        return Channel(argv)

    def agent(self, argv: Sequence[bytes]) -> Channel:
        return Channel([*_PROGRAM, *argv])

    def error(self, channel: Channel) -> GsyncError:
        return lost(self.slave, channel)

    def has_rsync(self) -> bool:
        return shutil.which("rsync") is not None

    def rsync(self, epoch: int, ticket: str) -> list[bytes]:
        argv = [*_PROGRAM, b"--rsync", self.slave.path, b"%d" % epoch, ticket.encode()]
        # The remote shell as rsync parses it: within double quotes every character except the quote itself is plain.
        shell = b" ".join(b'"' + word.replace(b'"', b'""') + b'"' for word in argv)
        return [b"--whole-file", b"-e", shell]

    def alive(self) -> bool:
        return True

    def break_off(self) -> None:
        """Nothing to do: each program has pipes of its own."""

    def close(self) -> None:
        """Nothing to close."""
