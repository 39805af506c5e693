"""`gsync archive`: freeze a directory, copy it to a vault, purge it from disk, bring it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.transfer.archive.archiver import Archiver
    from gsync.transfer.archive.batches import JobOptions
    from gsync.transfer.archive.outcome import Verify
    from gsync.transfer.archive.rows import Archive, Archives

app = typer.Typer(no_args_is_help=True, help="""Archive directories in a vault and bring them back.

The steps are create, put, purge and get; delete removes the vault's copy. A directory has one job at a time. To resume
a job that failed or was killed, re-run the same command with --retry. In the directory, .archive.STEP.done or .err
shows the state, and .archive.log records every step.""")

DirArgument = Annotated[str, typer.Argument(metavar="DIR", help="Directory to work on.",
                                            autocompletion=completion.archives)]
RetryOption = Annotated[bool, typer.Option("--retry", help="Resume after a failure; keep what is good.")]
VerifyOption = Annotated[str, typer.Option(
    "--verify", metavar="LEVEL",
    help="How to check copies: size, checksum or full. size: present and of the right size; checksum: read back too; "
    "full: the files on disk are read back too, and all attributes compared.",
    autocompletion=lambda: ["size", "checksum", "full"])]
BatchOption = Annotated[int,
                        typer.Option("--batch", metavar="N", min=1, help="Number of entries made durable together.")]
JobsOption = Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=64, help="Number of batches in parallel.")]
RetriesOption = Annotated[int, typer.Option(
    "--retries", metavar="N", min=0, help="Retries after a passing error, with growing pauses.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")]


@app.command("create")
def create(
    directory: DirArgument,
    vault: Annotated[str, typer.Option("--vault", metavar="STORE", help="Store for the archive, by name or URL.",
                                       autocompletion=completion.stores)],
    dry_run: DryRunOption = False, json: JsonOption = False, state: StateOption = None,
) -> None:
    """Freeze DIR and record what it holds; copy nothing yet.

    As root, on a file system with immutable flags, every file and directory becomes immutable (chattr +i) until the
    archive is deleted. Elsewhere put and purge detect changes and refuse.
    """
    with _archiver(state, json, "checksum", writes=True, looking=dry_run) as (archiver, root):
        if dry_run:
            from gsync.base.times import shown_size

            entries, size = archiver.survey(root(directory), vault)
            say(json, {"root": _text(root(directory)), "entries": entries, "bytes": size, "dry_run": True},
                 f"would archive {entries:,} entries, {shown_size(size)}")
            return
        _done(json, archiver.create(root(directory), vault), "next: gsync archive put DIR")


def _step(name: str, afterwards: str, about: str) -> None:
    """One of put, purge, get: they have the same options."""
    def step(directory: DirArgument, retry: RetryOption = False, verify: VerifyOption = "checksum",
             batch: BatchOption = 1000, jobs: JobsOption = 2, retries: RetriesOption = 5,
             dry_run: DryRunOption = False, json: JsonOption = False, state: StateOption = None) -> int:
        with _archiver(state, json, verify, batch, jobs, retries, writes=name == "put",
                       looking=dry_run) as (archiver, root):
            if dry_run:
                return _looked(json, name, directory, archiver.look(root(directory), name, retry))
            _done(json, getattr(archiver, name)(root(directory), retry), afterwards)
        return 0

    app.command(name, help=about)(step)


_step("put", "next: gsync archive purge DIR",
      "Copy DIR to its vault and read it back there. Stops at the first error.")
_step("purge", "next: gsync archive get DIR brings it back", """Remove the copy on disk.

Refused unless the vault holds every file, durable and intact. The whole archive is read back from the vault first;
--verify size skips that if it was read back before.""")
_step("get", "", """Bring DIR back from its vault.

Owners, modes, times, ACLs, extended attributes and hard links are restored. Entries that the vault cannot return are
listed by `gsync archive status`; all others are restored.""")


@app.command("delete")
def delete(directory: DirArgument, retry: RetryOption = False, yes: YesOption = False, dry_run: DryRunOption = False,
           json: JsonOption = False, state: StateOption = None) -> int:
    """Delete the vault's copy and unfreeze DIR.

    A delete that was interrupted resumes without --retry.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked, path_shown

    with _archiver(state, json, "checksum", writes=True, looking=dry_run) as (archiver, root):
        if dry_run:
            return _looked(json, "delete from the vault", directory, archiver.look_at_copy(root(directory)))
        archive = archiver.archives.the(root(directory))
        only = "" if archive.on_disk else " It is the only copy: the disk was purged."
        what = path_shown(_text(archive.root))
        if not yes and not asked(f"Delete the archive of {what} from {archive.store}?{only}"):
            raise UsageError(f"archive delete {directory}: not deleted; --yes deletes without asking.{only}")
        archiver.delete(archive.root)
        say(json, {"root": _text(archive.root), "deleted": True}, f"{what}: the archive is deleted")
    return 0


@app.command("rebuild")
def rebuild(
    directory: DirArgument,
    vault: Annotated[str | None, typer.Option("--vault", metavar="STORE",
                                              help="Store that holds the archive, if it is no longer known "
                                              "here.", autocompletion=completion.stores)] = None,
    dry_run: DryRunOption = False, json: JsonOption = False, state: StateOption = None,
) -> int:
    """Restore a lost manifest, or adopt an archive from a vault.

    DIR must be the exact path that was archived.
    """
    with _archiver(state, json, "checksum", looking=dry_run) as (archiver, root):
        path = root(directory, must=False)
        if dry_run:
            return _looked(json, "rebuild an archive of", directory, archiver.look_at_lost(path, vault))
        _done(json, archiver.rebuild(path, vault), "")
    return 0


@app.command("list")
def list_(json: JsonOption = False, state: StateOption = None) -> None:
    """List archives and backups."""
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown, print_json, print_table

    with archives_of(state) as archives:
        rows = [_described(archives, archive) for archive in (*archives.all(), *archives.all("backup"))]
    if json:
        print_json(rows)
    elif rows:
        print_table(["ID", "STATE", "ENTRIES", "SIZE", "CHANGED", "DIRECTORY"],
                    [[row["id"][:12], row["state"], f"{row['entries']:,}", shown_size(row["bytes"]), row["changed"],
                      path_shown(row["root"])] for row in rows])
    else:
        print("no archives or backups")


@app.command("status")
def status(directory: Annotated[str, typer.Argument(metavar="DIR|ID", help="Directory, or archive ID as shown by list.",
                                                    autocompletion=completion.archives)],
           json: JsonOption = False, state: StateOption = None) -> int:
    """Show an archive: state, progress and failed entries.

    Exit code 1: the last job failed.
    """
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown, print_json

    with archives_of(state) as archives:
        named = archives.get(directory) if "/" not in directory else None
        archive = archives.settle(named or archives.the(directory_of(directory, must=False)))
        row = _described(archives, archive)
        failures = [{"path": _text(path), "why": why} for path, why in archives.failures(archive)]
    failed = not archive.done and row["pid"] is None
    if json:
        print_json({**row, "failed_entries": failures})
        return int(failed)
    for key, value in (
            ("directory", path_shown(row["root"])), ("id", row["id"][:12]), ("state", row["state"]),
            ("reason", row["reason"]), ("vault", f"{row['vault']}, {row['place']}"),
            ("entries", f"{row['entries']:,}, {shown_size(row['bytes'])}"),
            ("frozen", row["kind"] == "archive" and ("yes, immutable" if row["frozen"]
                                                     else "no: changes are detected, not prevented")),
            ("read back", row["kind"] == "archive" and (row["checked"] or "never")),
            ("job", row["pid"] and f"pid {row['pid']}, {row['stage']}: {_progress(archive)}"),
            ("changed", row["changed"])):
        if value:
            print(f"{key + ':':12} {value}")
    for failure in failures[:20]:
        print(f"  {path_shown(str(failure['path']))}: {failure['why']}")
    if len(failures) > 20:
        print(f"  and {len(failures) - 20:,} more; --json lists all")
    return int(failed)


@app.command("kill")
def kill(id: Annotated[str, typer.Argument(metavar="ID", help="Archive ID as shown by list, or the directory.",
                                           autocompletion=completion.archives)],
         wait: Annotated[float,
                         typer.Option("--timeout", metavar="S", help="Seconds to wait for the job to exit.")] = 30,
         json: JsonOption = False, state: StateOption = None) -> int:
    """Stop the job of an archive; --retry resumes it.

    Exit code 1: the job did not exit within the timeout.
    """
    import time

    from gsync.base.errors import UsageError

    with archives_of(state) as archives:
        archive = (archives.get(id) if "/" not in id else None) or archives.at(directory_of(id, must=False))
        if archive is None:
            raise UsageError(f"{id}: no such archive; list them with gsync archive list")
        pid = archives.holder(archive)
        if pid is None:
            say(json, {"id": archive.id, "killed": False}, f"{archive.id[:12]}: no job is running")
            return 0
        archives.kill(archive)
        end = time.monotonic() + wait
        while archives.holder(archive) == pid and time.monotonic() < end:
            time.sleep(0.1)
        ended = archives.holder(archive) != pid
    say(json, {"id": archive.id, "killed": ended, "pid": pid},
         f"{archive.id[:12]}: " + (f"job {pid} exited" if ended else f"job {pid} has not exited yet"))
    return 0 if ended else 1


# what they share

@contextmanager
def archives_of(state: str | None, looking: bool = True) -> Iterator[Archives]:
    from gsync.state.home import Home
    from gsync.transfer.archive.rows import Archives
    from gsync.transfer.queue.transfers import Transfers

    home = Home(state)
    transfers = Transfers(home.path, looking)
    try:
        yield Archives(transfers, home.path)
    finally:
        transfers.close()


def directory_of(directory: str, must: bool = True) -> bytes:
    """The path by which an archive is known."""
    import os

    from gsync.base.errors import UsageError

    path = os.path.realpath(directory)
    if must and not os.path.isdir(path):
        raise UsageError(f"{directory}: not a directory" if os.path.lexists(path)
                         else f"{directory}: no such directory")
    return os.fsencode(path)


@contextmanager
def _archiver(state: str | None, json: bool, verify: str, batch: int = 1000, jobs: int = 2, retries: int = 5,
              writes: bool = False, looking: bool = False) -> Iterator[tuple[Archiver, Callable[..., bytes]]]:
    """An archiver, and the function that makes its paths. writes: to the vault; looking: make nothing."""
    from gsync.transfer.archive.archiver import Archiver
    from gsync.transfer.queue.registry import Stores

    with archives_of(state, looking) as archives, working(json, verify, batch, jobs, retries) as (options, level, show):
        stores = Stores(archives.transfers)
        try:
            yield Archiver(archives, stores.writable if writes else stores.get, options, level, show), directory_of
        finally:
            stores.close()


@contextmanager
def working(json: bool, verify: str, batch: int, jobs: int, retries: int
            ) -> Iterator[tuple[JobOptions, Verify, Callable[[Archive], None]]]:
    """Around a job: its options, and how to show it. SIGTERM ends it like Ctrl-C, with its state recorded."""
    import signal

    from gsync.base.errors import UsageError
    from gsync.transfer.archive.batches import JobOptions
    from gsync.transfer.archive.outcome import Verify
    from gsync.transfer.queue.retry import RetryPolicy

    try:
        level = Verify(verify)
    except ValueError:
        raise UsageError(f"--verify {verify}: expected size, checksum or full") from None
    show, end = _live_line(json)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield JobOptions(batch, jobs, RetryPolicy(retries, first_pause=1.0, longest_pause=60.0)), level, show
    finally:
        end()
        signal.signal(signal.SIGTERM, before)


def _live_line(json: bool) -> tuple[Callable[[Archive], None], Callable[[], None]]:
    """How to show a running job, and how to stop that: one line on a terminal, else nothing."""
    import sys

    if json or not sys.stderr.isatty():
        return lambda archive: None, lambda: None
    from gsync.cli.progress import LiveLine

    line = LiveLine()
    return lambda archive: line.show(f"{archive.stage}: {_progress(archive)}"), line.close


def _progress(archive: Archive) -> str:
    from gsync.base.times import shown_size

    done = f"{archive.entries_done:,}" + (f" of {archive.entries_all:,}" if archive.entries_all else "") + " entries"
    return done + (f", {shown_size(archive.size_done)} of {shown_size(archive.size)}" if archive.size_done else "")


def _text(path: bytes) -> str:
    import os

    return os.fsdecode(path)


def _described(archives: Archives, archive: Archive) -> dict[str, Any]:
    from gsync.base.times import rfc3339

    archive = archives.settle(archive)
    pid = archives.holder(archive)
    return {"id": archive.id, "kind": archive.kind, "root": _text(archive.root), "vault": archive.store,
            "place": _text(archive.place), "state": f"{archive.operation} running" if pid else archive.state,
            "operation": archive.operation, "done": archive.done, "reason": archive.reason, "entries": archive.entries,
            "bytes": archive.size, "stage": archive.stage, "stage_entries": archive.entries_all,
            "entries_done": archive.entries_done, "bytes_done": archive.size_done, "frozen": archive.frozen,
            "checked": rfc3339(archive.checked or None), "pid": pid, "request": archive.request,
            "failures": archives.count_failures(archive),
            "created": rfc3339(archive.created), "changed": rfc3339(archive.changed)}


def _done(json: bool, archive: Archive, text: str) -> None:
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown

    say(json, {"id": archive.id, "root": _text(archive.root), "state": archive.state, "entries": archive.entries,
                "bytes": archive.size, "frozen": archive.frozen},
         f"{path_shown(_text(archive.root))}: {archive.state}, {archive.entries:,} entries, {shown_size(archive.size)}"
         + (f"\n{text.replace('DIR', path_shown(_text(archive.root)))}" if text else ""))


def _looked(json: bool, operation: str, directory: str, found: tuple[int, int, list[tuple[bytes, str]]]) -> int:
    """Print what a dry run found; exit code 1 if the operation would be refused or incomplete."""
    from gsync.base.times import shown_size
    from gsync.cli.output import path_shown

    entries, size, bad = found
    lines = [f"{directory}: would {operation} {entries:,} entries, {shown_size(size)}",
             *(f"  {path_shown(_text(path))}: {why}" for path, why in bad[:20])]
    if bad:
        lines.insert(1, f"except {len(bad):,} entries:")
    say(json, {"root": directory, "operation": operation, "entries": entries, "bytes": size, "dry_run": True,
                "failed_entries": [{"path": _text(path), "why": why} for path, why in bad]}, "\n".join(lines))
    return int(bool(bad))


def say(json: bool, doc: dict[str, Any], text: str) -> None:
    from gsync.cli.output import print_json

    if json:
        print_json(doc)
    else:
        print(text)
