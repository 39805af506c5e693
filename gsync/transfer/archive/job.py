"""How the queue resumes the request of an archive or a backup (`gsync queue retry`).

It does what the command does with --retry, under the same request. Not here: how a command begins a job (jobs).
"""

from __future__ import annotations

from gsync.base.errors import UsageError
from gsync.transfer.archive.archiver import Archiver
from gsync.transfer.archive.backup import Backup, Window
from gsync.transfer.archive.batches import JobOptions, Killed
from gsync.transfer.archive.outcome import Verify
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.queue.handlers import Context
from gsync.transfer.queue.registry import StorePath
from gsync.transfer.queue.requests import Transfer


def carry_out(context: Context, t: Transfer) -> None:
    """Resume the operation. Raises UsageError, which no retry changes, if the archive is at another step by now."""
    archives = Archives(context.transfers, context.transfers.home, t)
    archive = archives.get(str(context.arguments["archive"]))
    if archive is None:
        raise UsageError("the archive no longer exists")
    operation, verify = str(context.arguments["operation"]), Verify(context.arguments.get("verify", "checksum"))

    def told(archive: Archive) -> None:
        try:
            context.progress(0)
        except Exception as exc:  # the worker raises to say that it gives up
            raise Killed("killed; resume with --retry") from exc

    try:
        if archive.kind == "backup":
            window = Window(int(context.arguments.get("seconds", 0)), str(context.arguments.get("time", "mtime")))
            Backup(archives, context.stores.writable, JobOptions(), verify, told).run(
                archive.root, StorePath(archive.store, archive.place), window,
                tuple(context.arguments.get("excluded_xattrs", ())))
        elif operation in ("put", "purge", "get"):
            open_store = context.stores.writable if operation == "put" else context.stores.get
            work = Archiver(archives, open_store, JobOptions(), verify, told)
            getattr(work, operation)(archive.root, retry=True)
        else:
            raise UsageError(f"the queue cannot resume this; use gsync archive {operation}")
    except Killed:
        context.progress(0)
        raise
