#!/usr/bin/env python3
"""Writes the reference: every command, argument, option, setting and exit code of gsync, read from the program.

    .venv/bin/python tools/reference.py            # writes docs/reference/*.md and docs/man/*.[15]
    .venv/bin/python tools/reference.py --check    # names the files that differ; exit code 1 if there is one

`commands`, `settings`, `absent_settings` and `exit_codes` give the same as data.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typer import Context
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gsync.cli.main import EXIT_CODES, make_app
from gsync.session.glusteroptions import NOT_HERE
from gsync.session.options import Row, Scope, table

ROOT = Path(__file__).resolve().parent.parent
PAGES, MANUALS = "docs/reference", "docs/man"
_WRITTEN = "<!-- Written by tools/reference.py from the program: change the text there. -->\n\n"


@dataclass(frozen=True)
class Parameter:
    """An argument or option as a user writes it ("--lines, -n N"). help: as in `--help`, with bounds and default if
    there are any."""

    name: str
    help: str


@dataclass(frozen=True)
class Command:
    """path: its words, "gsync queue list". help: paragraphs. commands: those of a group."""

    path: str
    usage: str
    help: tuple[str, ...]
    arguments: tuple[Parameter, ...]
    options: tuple[Parameter, ...]
    commands: tuple[Command, ...]
    hidden: bool

    @property
    def summary(self) -> str:
        return first_sentence(self.help[0]) if self.help else ""

    def all(self) -> Iterator[Command]:
        """This command and those below it."""
        yield self
        for command in self.commands:
            yield from command.all()


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a word, as `--help` takes it for a list of commands."""
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]


# the program's own texts

def commands() -> tuple[Command, ...]:
    """Every command, in the order of `gsync --help`; those that users do not start are hidden."""
    group = get_command(make_app())
    assert isinstance(group, TyperGroup)
    top = Context(group, info_name="gsync")
    return tuple(_command(command, Context(command, top, info_name=name)) for name, command in group.commands.items())


def _command(command: object, context: Context) -> Command:
    assert isinstance(command, (TyperCommand, TyperGroup))
    arguments, options = [], []
    for param in command.params:
        if isinstance(param, TyperOption):
            if not param.hidden:
                options.append(_option(param, context))
        else:
            arguments.append(Parameter(str(param.make_metavar(context)), _sentence(getattr(param, "help", None) or "")))
    below = command.commands.items() if isinstance(command, TyperGroup) else ()
    return Command(
        context.command_path, " ".join([context.command_path, *map(_plain, command.collect_usage_pieces(context))]),
        tuple(" ".join(part.split()) for part in (command.help or "").split("\n\n") if part.strip()),
        tuple(arguments), tuple(options),
        tuple(_command(each, Context(each, context, info_name=name)) for name, each in below), command.hidden)


def _option(param: TyperOption, context: Context) -> Parameter:
    names = ", ".join(sorted(param.opts, key=len, reverse=True))
    metavar = "" if param.is_flag else " " + _plain(str(param.make_metavar(context)))
    facts = [_sentence(param.help or "")]
    least, most = getattr(param.type, "min", None), getattr(param.type, "max", None)
    if least is not None or most is not None:
        facts.append(f"At least {least}." if most is None else f"From {least} to {most}.")
    if param.default is not None and param.default != "" and not param.is_flag:
        facts.append(f"Default: {param.default}.")
    return Parameter(names + metavar, " ".join(facts))


def _plain(metavar: str) -> str:
    """A metavar without the braces that typer puts around required ones, and with words for its types."""
    return {"<str>": "TEXT", "<int>": "N", "<int range>": "N", "<float>": "N"}.get(metavar, metavar.strip("{}"))


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "…", "?", ")")) else text + "."


def settings() -> tuple[Row, ...]:
    """Every option of `gsync config`."""
    return tuple(table().values())


def absent_settings() -> dict[str, str]:
    """GlusterFS options that gsync does not have, and what to use or know instead."""
    return dict(NOT_HERE)


def exit_codes() -> dict[int, str]:
    """The meaning of each exit code, for every command but `gsync status --check`."""
    return dict(EXIT_CODES)


# pages

def _escaped(text: str) -> str:
    """Text for a cell or paragraph of Markdown: everything outside backticks is literal."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [headings, ["---"] * len(headings), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def _described(command: Command) -> str:
    text = "".join(_escaped(part) + "\n\n" for part in command.help) + f"```text\n{command.usage}\n```\n\n"
    text += _table(["Argument", ""], [(f"`{p.name}`", _escaped(p.help)) for p in command.arguments])
    return text + _table(["Option", ""], [(f"`{p.name}`", _escaped(p.help)) for p in command.options])


def command_page(command: Command) -> str:
    text = f"{_WRITTEN}# {command.path}\n\n{_described(command)}"
    for below in command.commands:
        text += f"## {below.path}\n\n{_described(below)}"
    return text.rstrip("\n") + "\n"


def index_page(shown: Sequence[Command]) -> str:
    rows = [(f"[{command.path}]({_file(command)}.md)", _escaped(command.summary)) for command in shown]
    return (_WRITTEN + "# Reference\n\n"
            "Every command takes `--help`. The [settings](settings.md) of a session and of a node have a page of their "
            "own, and so have the [exit codes](exit-codes.md).\n\n" + _table(["Command", ""], rows)).rstrip("\n") + "\n"


def settings_page(rows: Sequence[Row]) -> str:
    text = (_WRITTEN + "# Settings\n\n"
            "Read and change them with [gsync config](config.md). A setting of the node holds for all its sessions; "
            "`gsync config --site` sets it.\n\n")
    for row in rows:
        text += f"## {row.name}\n\n{_escaped(row.about.help)}\n\n"
        text += "".join(f"- {key}: {value}\n" for key, value in _facts(row, _coded)) + "\n"
    text += "## Options of GlusterFS that gsync does not have\n\n"
    text += _table(["Option", "Instead"], [(f"`{name}`", _escaped(_sentence(why))) for name, why in
                                          sorted(absent_settings().items())])
    return text.rstrip("\n") + "\n"


def _facts(row: Row, coded: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    about = row.about
    yield "takes", coded(row.takes)
    yield "default", coded(row.text(row.default)) if row.text(row.default) else "nothing"
    if about.scope is Scope.NODE:
        yield "scope", "the node only"
    yield "restarts", ", ".join(about.restarts) or "nothing"
    if about.gluster:
        yield "GlusterFS's other name for it", coded(about.gluster)
    if about.unsafe:
        yield "caution", about.unsafe


def _coded(text: str) -> str:
    return f"`{text}`"


def exit_codes_page(codes: dict[int, str]) -> str:
    return (_WRITTEN + "# Exit codes\n\nThey are the same for every command. Only `gsync status --check` uses those of "
            "Nagios plugins instead: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.\n\n"
            + _table(["Code", "Meaning"], [(str(code), _escaped(text)) for code, text in codes.items()])
            ).rstrip("\n") + "\n"


# manual pages

def _roff(text: str) -> str:
    """A paragraph for man: backticks become bold, and no line begins with a dot or a quote."""
    parts = [part.replace("\\", "\\e").replace("-", "\\-").replace("…", "...") for part in text.split("`")]
    parts[1::2] = [f"\\fB{part}\\fR" for part in parts[1::2]]
    lines = textwrap.wrap("".join(parts), 110, break_long_words=False, break_on_hyphens=False)
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in lines) + "\n"


def _items(title: str, parameters: Sequence[Parameter]) -> str:
    if not parameters:
        return ""
    return f".SH {title}\n" + "".join(f".TP\n\\fB{_roff(p.name).strip()}\\fR\n{_roff(p.help)}" for p in parameters)


def _head(name: str, section: int, summary: str) -> str:
    title = f'.TH {name.upper()} {section} "" gsync "gsync manual"\n'
    return f"{title}.SH NAME\n{_roff(name).strip()} \\- {_roff(summary.rstrip('.'))}"


def _man_body(command: Command) -> str:
    text = f".SH SYNOPSIS\n{_roff(command.usage)}.SH DESCRIPTION\n" + ".PP\n".join(_roff(part) for part in command.help)
    return text + _items("ARGUMENTS", command.arguments) + _items("OPTIONS", command.options)


def _man_tail() -> str:
    return (_items("EXIT STATUS", [Parameter(str(code), text) for code, text in exit_codes().items()])
            + ".SH SEE ALSO\n.BR gsync (1),\n.BR gsync.conf (5)\n")


def command_manual(command: Command) -> str:
    text = _head(_file(command, "gsync-"), 1, command.summary) + _man_body(command)
    for below in command.commands:
        text += f".SH {_roff(below.path.upper())}.PP\n\\fB{_roff(below.usage).strip()}\\fR\n"
        text += "".join(".PP\n" + _roff(part) for part in below.help)
        text += "".join(f".TP\n\\fB{_roff(p.name).strip()}\\fR\n{_roff(p.help)}"
                        for p in (*below.arguments, *below.options))
    return text + _man_tail()


def index_manual(shown: Sequence[Command]) -> str:
    rows = [Parameter(command.path, command.summary) for command in shown]
    return (_head("gsync", 1, "asynchronous replication of directory trees and GlusterFS volumes")
            + ".SH SYNOPSIS\ngsync COMMAND [ARGS]...\n" + _items("COMMANDS", rows)
            + ".PP\nEach command has a page of its own, such as\n.BR gsync\\-status (1).\n" + _man_tail())


def settings_manual(rows: Sequence[Row]) -> str:
    text = (_head("gsync.conf", 5, "settings of gsync") + ".SH DESCRIPTION\n" + _roff(
        "Settings have the form `name = value`, below a line `[gsync]`. The files are /etc/gsync/gsync.conf, "
        "gsync.conf in the state directory, and gsync.conf in a session's folder; the later one wins. `gsync config` "
        "reads and changes them.") + ".SH SETTINGS\n")
    for row in rows:
        facts = "; ".join(f"{key}: {value}" for key, value in _facts(row, str))
        text += f".TP\n\\fB{_roff(row.name).strip()}\\fR\n{_roff(row.about.help)}.RS\n.PP\n{_roff(facts)}.RE\n"
    return text + ".SH SEE ALSO\n.BR gsync (1),\n.BR gsync\\-config (1)\n"


def _file(command: Command, prefix: str = "") -> str:
    return prefix + command.path.partition(" ")[2].replace(" ", "-")


def files() -> dict[str, str]:
    """Every file of the reference, by its path in the repository."""
    shown = [command for command in commands() if not command.hidden]
    found = {f"{PAGES}/index.md": index_page(shown), f"{PAGES}/settings.md": settings_page(settings()),
             f"{PAGES}/exit-codes.md": exit_codes_page(exit_codes()), f"{MANUALS}/gsync.1": index_manual(shown),
             f"{MANUALS}/gsync.conf.5": settings_manual(settings())}
    for command in shown:
        found[f"{PAGES}/{_file(command)}.md"] = command_page(command)
        found[f"{MANUALS}/{_file(command, 'gsync-')}.1"] = command_manual(command)
    return found


def differing(root: Path = ROOT) -> list[str]:
    """The files that differ from the program, are missing, or belong to a command that no longer exists."""
    wanted = files()
    there = {str(path.relative_to(root)): path.read_text(encoding="utf-8")
             for folder in (PAGES, MANUALS) for path in (root / folder).glob("*")}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def main(args: Sequence[str]) -> int:
    different = differing()
    if "--check" in args:
        print("\n".join(different))
        return 1 if different else 0
    wanted = files()
    for name in different:
        path = ROOT / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[name], encoding="utf-8")
        else:
            path.unlink()
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
