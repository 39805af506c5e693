"""The layers of settings: defaults, the files of the node, the session's file, and the command line.

A later layer wins, option by option. Each layer is checked as it is read, so an error names the file of the wrong
value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gsync.base import ini
from gsync.base.errors import UsageError
from gsync.session.options import Options, Row, Scope, find, table

SYSTEM = "/etc/gsync/gsync.conf"
FILE = "gsync.conf"
DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """A value, and the file (or command line) that set it."""

    value: Any
    where: str


def node_path(home: str) -> str:
    """The file of this node, in the state directory."""
    return os.path.join(home, FILE)


def site_paths(home: str) -> list[str]:
    """The files for all sessions of this node (home: its state directory), the weakest first."""
    return [os.environ.get("GSYNC_SYSTEM_CONF", SYSTEM), node_path(home)]


def read_layer(path: str) -> dict[str, Any]:
    """The values that a file sets, by field name, checked. UsageError names the file and the option."""
    texts: dict[str, str] = {}
    for name, text in ini.read(path).items():
        try:
            row = find(name)
        except UsageError as exc:
            raise UsageError(f"{path}: {exc}") from None
        if row.about.scope is Scope.NODE and _is_of_a_session(path):
            raise UsageError(f"{path}: {row.name}: {_of_the_node(row)}")
        if row.field in texts:
            raise UsageError(f"{path}: {row.name}: set twice, under two names; remove one")
        texts[row.field] = text
    options = Options.of(texts, path)
    return {field: getattr(options, field) for field in texts}


def read_layers(paths: Sequence[str]) -> dict[str, Setting]:
    """What the files set, by field name; a later path wins."""
    return {field: Setting(value, path) for path in paths for field, value in read_layer(path).items()}


def load_options(paths: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Options:
    """The options as these files and then `overrides` (of the command line, by field name) have them."""
    values = {field: setting.value for field, setting in read_layers(paths).items()}
    given = dict(overrides or {})
    Options.of(given, "command line")
    return Options.of({**values, **given}, paths[-1] if paths else "command line")


def set_value(path: str, name: str, text: str) -> Row:
    """Check and write one option, durably. UsageError: nothing is written."""
    row = find(name)
    if row.about.scope is Scope.NODE and _is_of_a_session(path):
        raise UsageError(f"{row.name}: {_of_the_node(row)}")
    value = getattr(Options.of({row.field: text}, path), row.field)
    _forget_other_name(path, row)
    ini.change(path, row.name, row.text(value))
    return row


def reset_value(path: str, name: str) -> Row:
    """Remove an option from a file: the layer below applies again."""
    row = find(name)
    _forget_other_name(path, row)
    ini.change(path, row.name, None)
    return row


def _forget_other_name(path: str, row: Row) -> None:
    if row.about.gluster:
        ini.change(path, row.about.gluster, None)


def _of_the_node(row: Row) -> str:
    return f"applies to the whole node; use gsync config --site set {row.name} VALUE"


def _is_of_a_session(path: str) -> bool:
    return os.path.exists(os.path.join(os.path.dirname(path), "session.json"))


def sample() -> str:
    """conf/gsync.conf: every option with its help and default, commented out."""
    lines = ["# Settings of gsync. /etc/gsync/gsync.conf and gsync.conf in the state directory apply to every session",
             "# of this host, gsync.conf in a session's directory to that session. The last one wins. `gsync config`",
             "# reads, checks and writes these files. An option that is commented out has its default.",
             "", f"[{ini.SECTION}]"]
    for row in table().values():
        about = row.about
        lines += ["", *(f"# {line}" for line in ini.wrapped(about.help))]
        lines += [f"# ({'node only; ' if about.scope is Scope.NODE else ''}{row.takes})"]
        lines += [f"#{line}" for line in ini.written(row.name, row.text(row.default))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(sample(), end="")
