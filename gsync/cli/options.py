"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion

if TYPE_CHECKING:
    from gsync.session.options import Row

StateOption = Annotated[str | None, typer.Option(
    "--state", metavar="DIR",
    help="State directory. Default: $GSYNC_HOME, /var/lib/gsync for root, ~/.local/state/gsync for others.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[list[str] | None, typer.Option(
    "-o", "--set", metavar="OPTION=VALUE", autocompletion=completion.settings,
    help="Any other setting, see `gsync config help`. Repeatable.")]


def duration(text: str | None, name: str) -> float | None:
    """Seconds of a command-line option, which needs a unit. UsageError."""
    from gsync.base.errors import UsageError
    from gsync.base.times import parse_duration

    try:
        return None if text is None else parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"{name}: {text!r}: {exc}") from None


def overrides(texts: list[str] | None) -> dict[str, Any]:
    """The options of --set by field name. UsageError."""
    return {row.field: value for row, value in assigned(texts, "--set").values()}


def assigned(texts: list[str] | None, flag: str) -> dict[str, tuple[Row, str]]:
    """The texts OPTION=VALUE by option; patterns add up. UsageError naming the flag."""
    from gsync.base.errors import UsageError
    from gsync.session.options import Kind, find

    values: dict[str, tuple[Row, str]] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{flag} {text}: expected OPTION=VALUE")
        row = find(name.strip())
        if row.name in values and row.about.kind is Kind.PATTERNS:
            value = f"{values[row.name][1]}\n{value}"
        values[row.name] = row, value
    return values
