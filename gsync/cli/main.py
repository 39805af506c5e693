"""The `gsync` command: which commands there are, and how every one of them ends (design/cli.md's exit codes).

Commands import what they need when they run, so that a start and `--help` cost little.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from gsync import __version__
from gsync.cli import (
    archive,
    backup,
    checkpoint,
    config,
    create,
    deliver,
    failures,
    hold,
    keys,
    logs,
    monitor,
    parts,
    publish,
    queue,
    recorder,
    run,
    send,
    session,
    status,
    store,
    volume,
)
from gsync.cli.output import print_error
from gsync.errors import GsyncError, UsageError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True,
                  help="Keeps a second site in step with a first one, by following changelogs.")
app.command("run")(run.run)
app.command("create")(create.create)
app.command("delete")(create.delete)
for command in (session.start, session.stop, session.pause, session.resume):
    app.command(command.__name__)(command)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("config", context_settings={"ignore_unknown_options": True})(config.config)
app.command("checkpoint")(checkpoint.checkpoint)
app.command("keys")(keys.keys)
app.command("failures")(failures.failures)
app.command("hold")(hold.hold)
app.add_typer(volume.app, name="volume")
app.add_typer(recorder.app, name="recorder")
app.command("send")(send.send)
app.add_typer(publish.app, name="publish")
app.add_typer(deliver.app, name="deliver")
app.add_typer(store.app, name="store")
app.add_typer(queue.app, name="queue")
app.add_typer(archive.app, name="archive")
app.command("backup")(backup.backup)
app.command("monitor")(monitor.monitor)
app.command("worker", hidden=True)(parts.worker)
app.command("agent", hidden=True, context_settings={"ignore_unknown_options": True})(parts.agent)


# What is wrong with where the state lies, or with whose it is, rather than with gsync.
_OF_THE_PLACE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}
_INTERRUPTED = 130  # what typer makes of KeyboardInterrupt


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gsync {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True,
                                          help="Print the version and exit.")) -> None:
    pass


def call(args: Sequence[str]) -> int:
    """Runs a command; returns its exit code, negative: to end by that signal. What went wrong is one line on stderr."""
    try:
        code = int(app(list(args), prog_name="gsync", standalone_mode=False) or 0)
        return -signal.SIGINT if code == _INTERRUPTED else code
    except GsyncError as exc:
        print_error(str(exc))
        return exc.exit_code
    except TyperException as exc:
        message = exc.format_message()
        if message.startswith("Usage:"):  # a group of commands without a command: this is its help
            print(message, file=sys.stderr)
        elif message:
            print_error(message)
        return exc.exit_code
    except SystemExit as exc:
        # 0: completion, which typer does; else what it makes of EPIPE: the reader of our output has had enough
        return -signal.SIGPIPE if exc.code else 0
    except (KeyboardInterrupt, typer.Abort):
        return -signal.SIGINT
    except Exception as exc:  # noqa: BLE001 - whatever it is, it ends in one line
        if os.environ.get("GSYNC_DEBUG"):
            traceback.print_exc()
        if isinstance(exc, OSError) and exc.filename is not None and exc.errno in _OF_THE_PLACE:
            print_error(f"{os.fsdecode(exc.filename)}: {exc.strerror}")
            return UsageError.exit_code
        print_error(f"internal error: {type(exc).__name__}: {exc} (GSYNC_DEBUG=1 shows where)")
        return GsyncError.exit_code


def main() -> None:
    """Ends the process: with the exit code, or by the signal that stopped unfinished work."""
    code = call(sys.argv[1:])
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
