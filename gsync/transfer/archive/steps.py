"""Which operation may follow which, with or without --retry. Pure."""

from __future__ import annotations

from gsync.base.errors import UsageError
from gsync.base.model import shown
from gsync.transfer.archive.rows import Archive

# which operations each may follow
_AFTER = {"put": {("create", True)}, "purge": {("put", True), ("get", True)}, "get": {("purge", True)}}
# with --retry also its own failure; a purge that stopped half-way may be undone (get), or the vault completed (put)
_AFTER_WITH_RETRY = {"put": {("purge", False)}, "get": {("purge", False)}}


def refuse(archive: Archive, operation: str, retry: bool) -> None:
    """Raise UsageError if the operation may not follow the last one."""
    where = shown(archive.root)
    state = (archive.operation, archive.done)
    if operation == "delete":
        return
    if state in _AFTER[operation] and not retry:
        return
    if retry and state in {(operation, False), *_AFTER_WITH_RETRY.get(operation, ())}:
        return
    if state == (operation, False):
        raise UsageError(f"{where}: the last {operation} failed ({archive.reason or 'it was killed'}); "
                         f"resume it with gsync archive {operation} --retry")
    needed = " or ".join(sorted(f"{name} done" if name != "create" else "created" for name, _ in _AFTER[operation]))
    hint = "" if archive.done else f"; resume that with gsync archive {archive.operation} --retry"
    raise UsageError(f"{where}: cannot {operation} an archive whose state is: {archive.state}; it must be: {needed}"
                     + (f", or for --retry: {operation} failed" if retry else hint))
