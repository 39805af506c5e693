"""`gsync backup`: copy a live directory into a store, skipping what cannot be copied."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli import completion
from gsync.cli.archive import BatchOption, DryRunOption, JobsOption, RetriesOption, VerifyOption, archives_of, working
from gsync.cli.options import JsonOption, StateOption


def backup(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Directory to back up.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Destination: STORE:PATH, a path, or a URL.",
                                               autocompletion=completion.stores)],
    newer_than: Annotated[str | None, typer.Option(
        "--newer-than", metavar="TIME", help="Copy only what changed within this time: 30m, 12h, 2d.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="mtime|ctime", help="The time that --newer-than compares.",
                                    autocompletion=lambda: ["mtime", "ctime"])] = "mtime",
    exclude_xattr: Annotated[list[str] | None, typer.Option(
        "--exclude-xattr", metavar="NAME[,NAME…]",
        help="Skip this extended attribute. Repeatable.")] = None,
    verify: VerifyOption = "checksum", batch: BatchOption = 1000, jobs: JobsOption = 2, retries: RetriesOption = 5,
    dry_run: DryRunOption = False, json: JsonOption = False, state: StateOption = None,
) -> None:
    """Copy the directory SRC to DST; list what cannot be copied.

    Unchanged files at DST are not sent again, and nothing is deleted there. gsync archive list and status show backups
    too. Exit code 1: some entries failed.
    """
    import os

    from gsync.base.times import shown_size
    from gsync.cli.archive import directory_of, say
    from gsync.cli.output import path_shown
    from gsync.transfer.archive.backup import Backup, Window
    from gsync.transfer.queue.registry import Stores

    window = Window.parse(newer_than, by)
    root = directory_of(source)
    with archives_of(state, dry_run) as archives, working(json, verify, batch, jobs, retries) as (
            options, level, show):
        stores = Stores(archives.transfers)
        try:
            work, place = Backup(archives, stores.writable, options, level, show), stores.place(destination)
            if dry_run:
                entries, size = work.survey(root, place, window)
                say(json, {"root": os.fsdecode(root), "entries": entries, "bytes": size, "dry_run": True},
                    f"would check {entries:,} entries, {shown_size(size)}")
                return
            excluded = tuple(name for names in exclude_xattr or [] for name in names.split(",") if name)
            done = work.run(root, place, window, excluded)
        finally:
            stores.close()
    say(json, {"id": done.id, "request": done.request, "root": os.fsdecode(root), "store": done.store,
               "place": os.fsdecode(done.place), "state": done.state, "entries": done.entries, "bytes": done.size},
        f"{path_shown(os.fsdecode(root))}: backed up to {place}, {done.entries:,} entries, {shown_size(done.size)}")
