"""How operations on archives and backups end, and how thoroughly they verify their work."""

from __future__ import annotations

import json
import time
from enum import Enum

from gsync.base.errors import GsyncError
from gsync.base.model import NS
from gsync.transfer.archive.batches import Killed
from gsync.transfer.queue.requests import TransferState


class Verify(Enum):
    """How thoroughly a copy is verified. Each level includes those before it."""

    SIZE = "size"          # the copy exists and has the right size
    CHECKSUM = "checksum"  # its bytes were read back and match the manifest's checksum
    FULL = "full"          # get: the disk was read back too; put: the tree as well


class Incomplete(GsyncError):
    """An operation did all it could, but could not do everything."""

    exit_code = 1


class ArchiveError(GsyncError):
    """An operation stopped at an error; its work so far stays done."""

    exit_code = 1


def ending(exc: BaseException) -> tuple[TransferState, str]:
    """The final state of a job that failed, and the reason."""
    if isinstance(exc, Killed):
        return TransferState.KILLED, str(exc)
    if isinstance(exc, KeyboardInterrupt):
        return TransferState.KILLED, "interrupted"
    return TransferState.FAILED, str(exc) if isinstance(exc, GsyncError) else f"{type(exc).__name__}: {exc}"


def log_line(operation: str, text: str, now: int) -> str:
    """A line for the log in the tree; now: ns."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now // NS))
    return f"{moment} {operation} {json.dumps(text)[1:-1]}"
