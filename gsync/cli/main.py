"""The `gsync` command: the table of commands, and how each of them ends (exit codes of base.errors).

Only the requested command is imported, and it imports what it needs when it runs, so a start is cheap.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import typer
from typer.exceptions import TyperException

from gsync import __version__
from gsync.base.errors import GsyncError, UsageError
from gsync.base.fate import STATE
from gsync.cli.output import print_error

# Of each command: its module in gsync.cli, and what typer must know. A module with an `app` is a group of commands.
_COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "run": ("run", {}),
    "create": ("create", {}),
    "delete": ("create", {}),
    "start": ("session", {}),
    "stop": ("session", {}),
    "pause": ("session", {}),
    "resume": ("session", {}),
    "status": ("status", {}),
    "logs": ("logs", {}),
    "config": ("config", {"context_settings": {"ignore_unknown_options": True}}),
    "checkpoint": ("checkpoint", {}),
    "keys": ("keys", {}),
    "failures": ("failures", {}),
    "hold": ("hold", {}),
    "send": ("send", {}),
    "backup": ("backup", {}),
    "monitor": ("monitor", {}),
    "worker": ("parts", {"hidden": True}),
    "agent": ("parts", {"hidden": True, "context_settings": {"ignore_unknown_options": True}}),
    "volume": ("volume", {}),
    "recorder": ("recorder", {}),
    "publish": ("publish", {}),
    "deliver": ("deliver", {}),
    "store": ("store", {}),
    "queue": ("queue", {}),
    "archive": ("archive", {}),
}

# The same for every command but `status --check`, which has those of Nagios's plugins.
EXIT_CODES = {
    0: "Done.",
    1: "Done, but with failures or held deletes: `gsync failures` and `gsync hold` list them.",
    2: "The command line, a setting or a path is wrong. Nothing was done.",
    3: "Another gsync process is running for the same thing.",
    4: "The slave is unreachable, or refuses.",
    5: "Anything else; the message says what to do.",
}

# What is wrong with where the state lies, or with whose it is, rather than with gsync.
_OF_THE_PLACE = STATE.full | STATE.denied
_INTERRUPTED = 130  # what typer makes of KeyboardInterrupt


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gsync {__version__}")
        raise typer.Exit


def _options(version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True,
                                          help="Print the version and exit.")) -> None:
    pass


def make_app(names: Iterable[str] = _COMMANDS) -> typer.Typer:
    """The program with these commands. All of them take 0.1 s to make, longer than most commands run."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True,
                      help="Keep a second site in sync by following changelogs.")
    app.callback()(_options)
    for name in names:
        where, settings = _COMMANDS[name]
        module = import_module(f"gsync.cli.{where}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, **settings)
        else:
            app.command(name, **settings)(getattr(module, name))
    return app


def call(args: Sequence[str]) -> int:
    """Run a command; its exit code, negative: exit by that signal. An error is one line on stderr."""
    try:
        app = make_app(args[:1] if args and args[0] in _COMMANDS else _COMMANDS)
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
    """Exit the process: with the exit code, or by the signal that interrupted unfinished work."""
    code = call(sys.argv[1:])
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
