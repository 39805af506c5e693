"""`gsync config`: the settings of a session, or with --site those of this node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption
from gsync.cli.words import no_more

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gsync.session.config import Setting
    from gsync.session.options import Row
    from gsync.session.session import Session
    from gsync.state.home import Home

VERBS = ("get", "set", "reset", "list", "help")


def config(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[SESSION] [get|set|reset|list|help] [OPTION [VALUE]]",
        help="What to do. SESSION is optional if there is only one.",
        autocompletion=completion.config_words(VERBS))] = None,
    site: Annotated[bool, typer.Option("--site", help="Use the settings of this node, for all its sessions.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Show and change settings.

    `list` shows all settings that apply to the session, `get` shows one. `set` writes a value. `reset` removes it,
    so that the node's setting or the default applies. `help` explains an option. `gsync config OPTION` is short for
    get, `gsync config OPTION VALUE` for set. A running worker restarts with the new setting.
    """
    from gsync.base.errors import UsageError
    from gsync.state.home import Home

    name, verb, rest = parse(words or [])
    if verb == "help":
        _help(rest, json)
        return
    if site and name is not None:
        raise UsageError(f"config --site: applies to all sessions of this node; leave out {name}")
    place = _Place(Home(state), name, site)
    if verb == "list":
        no_more("config list", rest)
        _list(place, json)
    elif verb == "get":
        no_more("config get", rest[1:])
        _get(place, rest[0], json)
    else:
        _change(place, verb, rest, yes=yes, json=json)


def parse(words: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Session (None: the only one), verb, and the remaining words; both may be left out. UsageError."""
    from gsync.base.errors import UsageError

    rest = list(words)
    name = None
    if rest and rest[0] not in VERBS and not _is_option(rest[0]):
        name = rest.pop(0)
    verb = rest.pop(0) if rest and rest[0] in VERBS else "list" if not rest else "get" if len(rest) == 1 else "set"
    if verb in ("get", "reset") and not rest:
        raise UsageError(f"config {verb}: give an OPTION; `gsync config help` lists them")
    if verb == "set" and len(rest) < 2:
        raise UsageError("config set: give OPTION and VALUE; `gsync config help` lists the options")
    if name is not None and verb in ("get", "set") and words[1] not in VERBS and not _is_option(words[1]):
        raise UsageError(f"config {name} {words[1]}: expected an option or one of {', '.join(VERBS)}")
    return name, verb, rest


def _is_option(word: str) -> bool:
    from gsync.base import ini
    from gsync.session.glusteroptions import NOT_HERE
    from gsync.session.options import table

    name = ini.option_name(word)
    return name in table() or name in NOT_HERE or any(name == row.about.gluster for row in table().values())


class _Place:
    """Whose settings are meant: a session's, or the node's."""

    def __init__(self, home: Home, name: str | None, site: bool) -> None:
        from gsync.session import config
        from gsync.session.session import SessionHome

        self.home = home
        self.session: Session | None = None
        self.path = config.node_path(home.path)
        self.paths = config.site_paths(home.path)
        if not site:
            self.session = SessionHome(home, check=False).the(name)
            self.path = self.session.config
            self.paths = [*self.paths, self.path]

    def settings(self) -> dict[str, Setting]:
        from gsync.session import config

        return config.read_layers(self.paths)

    def consequence(self, row: Row) -> str:
        """How processes that are running take up a change of this option."""
        from gsync.base.process import Lock
        from gsync.session.control import Wanted, read_wanted

        if self.session is not None:
            if Lock(self.session.run_lock, "").holder() is not None:
                return "`gsync run` uses it after a restart"
            if read_wanted(self.session) in (Wanted.STARTED, Wanted.PAUSED):
                return "the worker restarts with it"
            return "takes effect when the session is started"
        if row.about.restarts == ("monitor",):
            return "a running monitor uses it at once"
        if row.about.restarts == ("queue",):
            return "gsync queue run and gsync publish run use it after a restart"
        return f"a running monitor restarts its {', '.join(part + 's' for part in row.about.restarts)} with it"


def _described(row: Row, settings: dict[str, Setting]) -> dict[str, Any]:
    from gsync.session import config

    setting = settings.get(row.field) or config.Setting(row.default, config.DEFAULT)
    return {"option": row.name, "value": row.text(setting.value), "from": setting.where,
            "default": row.text(row.default)}


def _list(place: _Place, json: bool) -> None:
    from gsync.cli.output import print_json, print_table
    from gsync.session.options import Scope, table

    settings = place.settings()
    rows = [_described(row, settings) for row in table().values()
            if place.session is None or row.about.scope is not Scope.NODE]
    if json:
        print_json(rows)
    else:
        print_table(["OPTION", "VALUE", "FROM", "DEFAULT"],
                    [[r["option"], r["value"], r["from"], r["default"]] for r in rows])


def _get(place: _Place, name: str, json: bool) -> None:
    from gsync.cli.output import print_json
    from gsync.session.options import find

    described = _described(find(name), place.settings())
    if json:
        print_json(described)
    else:
        print(described["value"].encode("utf-8", "backslashreplace").decode())


def _change(place: _Place, verb: str, rest: list[str], *, yes: bool, json: bool) -> None:
    from gsync.cli.output import print_json
    from gsync.session import config
    from gsync.session.options import find

    row = find(rest[0])
    if verb == "set":
        text = _joined(row, rest[1:])
        _confirm(row, text, yes)
        config.set_value(place.path, row.name, text)
    else:
        no_more("config reset", rest[1:])
        config.reset_value(place.path, row.name)
    described = _described(row, place.settings())
    consequence = place.consequence(row)
    if json:
        print_json({**described, "file": place.path, "restarts": list(row.about.restarts), "effect": consequence})
    else:
        shown = " | ".join(described["value"].split("\n")) or "(nothing)"
        print(f"{row.name}: {shown.encode('utf-8', 'backslashreplace').decode()}  [{described['from']}]; {consequence}")


def _joined(row: Row, values: Sequence[str]) -> str:
    from gsync.base.errors import UsageError
    from gsync.session.options import Kind

    if row.about.kind is Kind.PATTERNS:
        return "\n".join(values)
    if len(values) > 1 and row.takes != "text":
        raise UsageError(f"config set {row.name}: unexpected argument: {values[1]}")
    return " ".join(values)


def _confirm(row: Row, text: str, yes: bool) -> None:
    """Ask before changing an option that may cost data."""
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked
    from gsync.session.options import Options

    value = getattr(Options.of({row.field: text}, "command line"), row.field)
    if not row.about.unsafe or value == row.default or yes:
        return
    if not asked(f"Set {row.name}? {row.about.unsafe}."):
        raise UsageError(f"config set {row.name}: not set; {row.about.unsafe}; confirm, or use --yes")


def _help(rest: Sequence[str], json: bool) -> None:
    from gsync.cli.output import print_json, print_table
    from gsync.session.options import find, table

    no_more("config help", rest[1:])
    rows = [find(rest[0])] if rest else list(table().values())
    if json:
        print_json([_explained(row) for row in rows])
    elif rest:
        print("\n".join(f"{key.replace('_', ' ')}: {value}" if key != "option" else str(value)
                        for key, value in _explained(rows[0]).items() if value))
    else:
        print_table(["OPTION", "DEFAULT", "TAKES", "HELP"],
                    [[row.name, row.text(row.default), row.takes, row.about.help] for row in rows])


def _explained(row: Row) -> dict[str, Any]:
    about = row.about
    return {"option": row.name, "help": about.help, "takes": row.takes, "default": row.text(row.default),
            "scope": "node (set with --site)" if about.scope == "node" else "session",
            "restarts": ", ".join(about.restarts) or "nothing", "caution": about.unsafe,
            "other_name": about.gluster}
