"""`gsync logs`: the last lines of a log, and the lines that follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, BinaryIO

import typer

from gsync.cli import completion
from gsync.cli.options import StateOption

LOOK = 0.2          # s between two looks for more
_BLOCK = 1 << 16


def logs(
    session: Annotated[str | None, typer.Argument(
        metavar="SESSION", help="Name of the session. Optional if there is only one.",
        autocompletion=completion.sessions)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines until stopped.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="Number of lines.")] = 20,
    monitor: Annotated[bool, typer.Option("--monitor", help="Show the log of the monitor.")] = False,
    recorder: Annotated[bool, typer.Option("--recorder", help="Show the log of the recorder of the session's volume.")]
    = False,
    state: StateOption = None,
) -> None:
    """Show the log of a worker, a recorder or the monitor."""
    import sys
    from contextlib import suppress

    from gsync.base.errors import UsageError
    from gsync.service.monitor import monitor_log
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    home = Home(state)
    if monitor and (recorder or session is not None):
        raise UsageError("logs --monitor: this log is of the whole node; give neither a session nor --recorder")
    if monitor:
        path, what = monitor_log(home), "the monitor"
    else:
        chosen = SessionHome(home).the(session)
        path, what = chosen.log, f"session {chosen.name}"
        if recorder:
            path, what = home.get(chosen.volume).brick().log, f"the recorder of volume {chosen.volume}"
    try:
        with suppress(KeyboardInterrupt):
            for piece in read(path, lines, follow):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
    except FileNotFoundError:
        raise UsageError(f"{what} has no log yet ({path})") from None


def read(path: str, count: int, follow: bool) -> Iterator[bytes]:
    """The last `count` lines of a log and of its older files (path.1, …); then, with `follow`, lines that are appended,
    across rotations. FileNotFoundError if there is no log."""
    import os
    import time

    file = _opened(path, wait=follow)
    try:
        end = os.fstat(file.fileno()).st_size
        last = _last_lines(file, end, count)
        yield from _older_lines(path, count - len(last))
        yield b"".join(last)
        file.seek(end)
        while follow:
            if piece := file.read(_BLOCK):
                yield piece
            elif (following := _next(path, file)) is None:
                time.sleep(LOOK)
            else:
                yield file.read()  # written between the last read and the rotation
                file.close()
                file = following
    finally:
        file.close()


def _opened(path: str, wait: bool) -> BinaryIO:
    import time

    while True:
        try:
            return open(path, "rb")
        except FileNotFoundError:
            if not wait:
                raise
            time.sleep(LOOK)


def _older_lines(path: str, count: int) -> Iterator[bytes]:
    """The last `count` lines of the rotated files, the oldest first."""
    import os

    found: list[list[bytes]] = []
    while count > 0:
        try:
            with open(f"{path}.{len(found) + 1}", "rb") as rotated:
                found.append(_last_lines(rotated, os.fstat(rotated.fileno()).st_size, count))
        except FileNotFoundError:
            break
        count -= len(found[-1])
    for lines in reversed(found):
        yield b"".join(lines)


def _last_lines(file: BinaryIO, end: int, count: int) -> list[bytes]:
    """At most `count` lines of a file before the offset `end`."""
    data, start = b"", end
    while start > 0 and data.count(b"\n") <= count:
        block = min(_BLOCK, start)
        start -= block
        file.seek(start)
        data = file.read(block) + data
    return data.splitlines(keepends=True)[-count:] if count else []


def _next(path: str, file: BinaryIO) -> BinaryIO | None:
    """The file that follows this one after its rotation; None while it is the log itself."""
    import os

    ours = os.fstat(file.fileno())
    newer: BinaryIO | None = None
    for name in (path, *(f"{path}.{n}" for n in range(1, 100))):
        try:
            found = open(name, "rb")  # noqa: SIM115 given to the caller, or closed here
        except FileNotFoundError:
            break
        if os.path.samestat(os.fstat(found.fileno()), ours):
            found.close()
            break
        if newer is not None:
            newer.close()
        newer = found
    return newer
