"""Shell completion: names of sessions and volumes, verbs, settings.

Called for each press of a key, so it reads and imports only what the answer needs. If anything is wrong with the state
directory, there is nothing to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import typer


def sessions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of sessions, without those already given."""
    given = [word for value in ctx.params.values() if isinstance(value, (list, tuple)) for word in value]
    return _fitting(_names(_home(ctx), "sessions"), incomplete, without=given)


def volumes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of volumes."""
    return _fitting(_names(_home(ctx), "volumes"), incomplete)


def requests(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of requests, the newest."""
    given = [word for value in ctx.params.values() if isinstance(value, (list, tuple)) for word in value]
    return _fitting(_rows(ctx, "SELECT id FROM requests ORDER BY created DESC LIMIT 200"), incomplete, without=given)


def archives(ctx: typer.Context, incomplete: str) -> list[str]:
    """Archived directories."""
    import os

    roots = _rows(ctx, "SELECT root FROM archives WHERE kind = 'archive' ORDER BY root")
    return _fitting(map(os.fsdecode, roots), incomplete)


def words(verbs: Sequence[str]) -> Callable[[typer.Context, str], list[str]]:
    """For `COMMAND [SESSION] VERB …`: first a session or a verb, then a verb."""
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        given = list(ctx.params.get("words") or [])
        if any(word in verbs for word in given):
            return []
        found = list(verbs) + ([] if given else _names(_home(ctx), "sessions"))
        return _fitting(found, incomplete)

    return complete


def config_words(verbs: Sequence[str]) -> Callable[[typer.Context, str], list[str]]:
    """For `config [SESSION] [VERB] [OPTION [VALUE]]`."""
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from gsync.session.options import table

        given = list(ctx.params.get("words") or [])
        options = table()
        found: list[str] = []
        if not any(word in verbs or word in options for word in given):
            found = [*verbs, *options] + ([] if given else _names(_home(ctx), "sessions"))
        elif given[-1] in verbs and given[-1] != "list":
            found = list(options)
        elif given[-1] in options and not {"get", "reset", "help"} & set(given):
            found = _values(given[-1])
        return _fitting(found, incomplete)

    return complete


def stores(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of registered stores."""
    return _fitting(_rows(ctx, "SELECT name FROM stores ORDER BY name"), incomplete)


def store_words(ctx: typer.Context, incomplete: str) -> list[str]:
    """For STORE[,STORE…]: names of registered stores after the last comma."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    names = _rows(ctx, "SELECT name FROM stores ORDER BY name")
    return [before + comma + name for name in _fitting(names, last, without=given)]


def catalogs(incomplete: str) -> list[str]:
    """The forms of a catalog."""
    return _fitting(["default", "sqlite:", "jsonl:", "command:", "https://"], incomplete)


def nights(ctx: typer.Context, incomplete: str) -> list[str]:
    """Nights (or other groups of units) that `gsync deliver` knows, of all data sets."""
    import os
    import sqlite3
    from contextlib import closing

    from gsync.base.database import Database

    path = os.path.join(_home(ctx), "transfers.db")
    with suppress(sqlite3.Error), closing(Database.open(path, readonly=True, timeout=1)) as db:
        rows = db.execute("SELECT DISTINCT grp FROM deliver_groups ORDER BY day DESC LIMIT 400")
        return _fitting([os.fsdecode(row[0]) for row in rows], incomplete, list(ctx.params.get("nights") or []))
    return []


def settings(incomplete: str) -> list[str]:
    """For -o OPTION=VALUE."""
    from gsync.session.options import Scope, table

    name, equals, _ = incomplete.partition("=")
    if equals and name in table():
        return _fitting([f"{name}={value}" for value in _values(name)], incomplete)
    return _fitting([f"{row.name}=" for row in table().values() if row.about.scope is not Scope.NODE], incomplete)


def _values(option: str) -> list[str]:
    """The values of an option that accepts one of a few words."""
    from gsync.session.options import table

    takes = table()[option].takes
    return takes.split(" | ") if " | " in takes else []


def _fitting(names: Iterable[str], incomplete: str, without: Sequence[str] = ()) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and name not in without]


def _home(ctx: typer.Context) -> str:
    import os

    from gsync.state.home import default_path

    return os.path.abspath(ctx.params.get("state") or default_path(os.environ))


def _rows(ctx: typer.Context, query: str) -> list[Any]:
    """The first column of a query of the transfers' database; nothing if there is none."""
    import os
    import sqlite3
    from contextlib import closing

    from gsync.base.database import Database

    with suppress(sqlite3.Error):
        path = os.path.join(_home(ctx), "transfers.db")
        with closing(Database.open(path, readonly=True, timeout=1)) as db:
            return [row[0] for row in db.execute(query)]
    return []


def _names(home: str, kind: str) -> list[str]:
    """The entries of the directory `kind` in the state directory; for sessions, on the meta volume too."""
    import os

    file = {"sessions": "session.json", "volumes": "volume.json"}[kind]
    found: set[str] = set()
    for folder in [home, *(_meta_volume(home) if kind == "sessions" else [])]:
        with suppress(OSError):
            found.update(name for name in os.listdir(os.path.join(folder, kind))
                         if os.path.exists(os.path.join(folder, kind, name, file)))
    return sorted(found)


def _meta_volume(home: str) -> list[str]:
    """The directory that all nodes share, if this node has a meta volume."""
    import os

    from gsync.base import ini

    settings: dict[str, str] = {}
    for path in (os.environ.get("GSYNC_SYSTEM_CONF", "/etc/gsync/gsync.conf"), os.path.join(home, "gsync.conf")):
        with suppress(Exception):
            settings.update(ini.read(path))
    if settings.get("use-meta-volume", "").lower() not in ("true", "yes", "on", "1"):
        return []
    return [os.path.join(settings.get("meta-volume-mnt", "/run/gluster/shared_storage"), "geo-rep")]
