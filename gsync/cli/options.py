"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gsync.cli import completion

StateOption = Annotated[str | None, typer.Option(
    "--state", metavar="DIR",
    help="State directory. Default: $GSYNC_HOME, /var/lib/gsync for root, ~/.local/state/gsync for others.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[list[str] | None, typer.Option(
    "-o", "--set", metavar="OPTION=VALUE", autocompletion=completion.settings,
    help="Any other setting, see `gsync config help`. Repeatable.")]


def duration(text: str | None, name: str) -> float | None:
    """Seconds of an option on the command line, which needs its unit. UsageError."""
    from gsync.base.errors import UsageError
    from gsync.base.times import parse_duration

    try:
        return None if text is None else parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"{name}: {text!r}: {exc}") from None


def overrides(texts: list[str] | None) -> dict[str, Any]:
    """The options of --set by field name; patterns add up. UsageError."""
    from gsync.base.errors import UsageError
    from gsync.session.options import Kind, find

    values: dict[str, str] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected OPTION=VALUE")
        row = find(name)
        before = values.get(row.field)
        values[row.field] = f"{before}\n{value}" if before is not None and row.about.kind is Kind.PATTERNS else value
    return values
