"""gsync's program on the slave host, the one place that tells its uses apart. Each use imports only what it needs.

Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from gsync.base.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the use that the arguments name (see `usage`); return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.umask(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C: the worker ends us by closing our stdin
    if len(arguments) == 2 and arguments[0] == "--receive":
        from gsync.slave import receive

        return receive.main(os.fsencode(arguments[1]))
    if arguments[:1] == ["--rsync"]:
        from gsync.slave.directory import rsync_server

        return rsync_server.main(arguments[1:])
    if len(arguments) == 2 and arguments[0] == "--forced":
        from gsync.slave import forced_command

        return forced_command.main(os.fsencode(arguments[1]))
    if arguments == ["--authorize"]:
        from gsync.slave import authorize

        return authorize.main()
    if len(arguments) != 1:
        print("usage: agent ROOT | --receive ROOT | --rsync ROOT EPOCH TICKET --server ... | --forced ROOT | "
              "--authorize", file=sys.stderr)
        return UsageError.exit_code
    from gsync.slave import serve

    return serve.run(os.fsencode(arguments[0]))


if __name__ == "__main__":
    sys.exit(main())
