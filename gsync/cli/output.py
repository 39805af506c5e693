"""Prints: one line for an error, JSON documents for machines, tables for people."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from gsync.base.model import shown


def json_ready(value: Any) -> Any:
    """The value, with the bytes added to each text that is not UTF-8 (a path, os.fsdecode'd)."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raw = os.fsencode(value)
            return {"path": raw.decode("utf-8", "replace"), "path_b64": base64.b64encode(raw).decode("ascii")}
    elif isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout, flushed."""
    sys.stdout.write(json.dumps(json_ready(value)) + "\n")
    sys.stdout.flush()


_text_json = json.JSONEncoder().encode


def path_json(path: bytes) -> str:
    """A path as JSON, with its bytes if it is not UTF-8."""
    try:
        return _text_json(path.decode())
    except UnicodeDecodeError:
        return json.dumps(json_ready(os.fsdecode(path)))


def print_json_array(texts: Iterable[str], before: str = "", after: str = "") -> None:
    """A JSON array of objects that are already JSON, on one line of stdout, as they come. before, after: the text
    around it."""
    texts = iter(texts)
    sys.stdout.write(before + "[")
    separator = ""
    while some := list(islice(texts, _LONG)):
        sys.stdout.write(separator + ", ".join(some))
        separator = ", "
    sys.stdout.write("]" + after + "\n")
    sys.stdout.flush()


def path_shown(path: str) -> str:
    return path if path.isprintable() else shown(os.fsencode(path))


def print_error(message: str) -> None:
    """The one line of an error."""
    text = " ".join(message.split("\n")).encode("utf-8", "backslashreplace").decode()
    sys.stderr.write(f"gsync: {text}\n")
    sys.stderr.flush()


def asked(question: str) -> bool:
    """Whether the user confirms at the terminal; without a terminal, no."""
    import typer

    return sys.stdin.isatty() and typer.confirm(question)


_LONG = 200  # rows; laying more out for the width of a terminal takes too long


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], none: str = "") -> None:
    """A table as wide as its contents on a pipe, as wide as the terminal on one (unless it is long). none: printed
    instead of a table without rows."""
    from itertools import chain

    rows = iter(rows)
    first = list(islice(rows, _LONG))
    if none and not first:
        print(none)
        return
    if (more := next(rows, None)) is not None:
        line = "  ".join(f"%-{max(map(len, column))}s" for column in zip(headings, *first, strict=True))
        for row in chain([headings], first, [more], rows):
            sys.stdout.write((line % tuple(row)).rstrip() + "\n")
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False)
    console.print(make_table(headings, first))


def make_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
