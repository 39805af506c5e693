"""How operations on archives and backups end, and how far they check what they did."""

from __future__ import annotations

import json
import time
from enum import Enum

from gsync.base.errors import GsyncError
from gsync.base.model import NS
from gsync.transfer.archive.batches import Killed
from gsync.transfer.queue.requests import TransferState


class Verify(Enum):
    """How far a copy is believed. Each level holds those before it."""

    SIZE = "size"          # it is there, and as long as it should be
    CHECKSUM = "checksum"  # its bytes were read again and have the checksum of the manifest
    FULL = "full"          # get: what is on the disk was read again too; put: the tree as well


class Incomplete(GsyncError):
    """An operation that did all it could, and could not do all."""

    exit_code = 1


class ArchiveError(GsyncError):
    """An operation that stopped at an error; what it had done before stays done."""

    exit_code = 1


def ending(exc: BaseException) -> tuple[TransferState, str]:
    """How a job ended that did not do its work, and why."""
    if isinstance(exc, Killed):
        return TransferState.KILLED, str(exc)
    if isinstance(exc, KeyboardInterrupt):
        return TransferState.KILLED, "interrupted"
    return TransferState.FAILED, str(exc) if isinstance(exc, GsyncError) else f"{type(exc).__name__}: {exc}"


def log_line(operation: str, text: str, now: int) -> str:
    """A line for the log in the tree; now: ns."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now // NS))
    return f"{moment} {operation} {json.dumps(text)[1:-1]}"
