"""A unit of delivery: a name in a ready folder that matches the data set's pattern, such as NIGHT/EXPOSURE.

Pure. A pattern is a path with fields: `{night}/{exposure}`. `night` is a date, written YYYYMMDD, `exposure` has eight
digits, any other `{name}` is one part of a path; `{name:REGEX}` overrides that. Days are in UTC. A night's work is done
on the next day, so the last night of a year belongs to that year.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

NIGHT = "night"
DEFAULT = "{night}/{exposure}"
_KNOWN = {NIGHT: r"[0-9]{8}", "exposure": r"[0-9]{8}"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
OURS = b".gsync-"  # prefix of the names that delivery creates beside the units


@dataclass(frozen=True)
class Unit:
    """One unit. path: the same in the ready folder, staging and destination. group: units that are backed up and shown
    together: those of a night (or, if the pattern has none, of the first part of the path). day: of the night, if
    any."""

    path: bytes
    group: bytes
    day: date | None
    fields: Mapping[str, str]

    def __str__(self) -> str:
        return os.fsdecode(self.path)


class Pattern:
    """A unit pattern. ValueError says why a text is not one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.depth = 0          # the number of parts in a unit's path
        self.fields: list[str] = []
        regex, part = [], []
        for piece, name, field in _pieces(text):
            if name is None:
                part.append(piece)
                regex.append(re.escape(piece))
                continue
            if name in self.fields:
                raise ValueError(f"{{{name}}} appears twice")
            self.fields.append(name)
            part.append("x")
            regex.append(f"(?P<{name}>{field or _KNOWN.get(name, '[^/]+')})")
        parts = "".join(part).split("/")
        if any(not each or each in (".", "..") for each in parts):
            raise ValueError("empty path part; expected a path such as {night}/{exposure}")
        if parts[0].startswith(os.fsdecode(OURS)):
            raise ValueError(f"names that begin with {os.fsdecode(OURS)} are reserved for gsync")
        if not self.fields:
            raise ValueError("it has no field such as {exposure}, so it matches only one unit")
        self.depth = len(parts)
        try:
            self._regex = re.compile("".join(regex), re.ASCII | re.DOTALL)
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from None

    def match(self, path: bytes) -> Unit | None:
        """The unit with this path; None if it does not match."""
        found = self._regex.fullmatch(os.fsdecode(path))
        parts = path.split(b"/")
        if found is None or len(parts) != self.depth or parts[0].startswith(OURS):
            return None
        fields = found.groupdict()
        day = None
        if NIGHT in fields:
            day = night_day(fields[NIGHT])
            if day is None:
                return None
        group = os.fsencode(fields[NIGHT]) if NIGHT in fields else parts[0]
        return Unit(path, group, day, fields)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Fill in a name such as `checksum-{exposure}.sha256sum` for a unit. ValueError for a field that the unit lacks."""
    found = []
    for piece, name, regex in _pieces(template):
        if name is not None and (regex is not None or name not in fields):
            raise ValueError(f"{{{name}}} is no field of the unit pattern")
        found.append(piece if name is None else fields[name])
    return "".join(found)


def night_day(text: str) -> date | None:
    """The date written as YYYYMMDD; None if there is no such day."""
    try:
        return datetime.strptime(text, "%Y%m%d").date() if re.fullmatch("[0-9]{8}", text) else None
    except ValueError:
        return None


def due_at(day: date, hour: int, later: int = 0) -> datetime:
    """When the work at an hour (UTC) of the day after a night falls due; `later`: so many days after that."""
    return datetime.combine(day + timedelta(days=1 + later), time(hour), UTC)


def times_due(day: date, hour: int, now: datetime, most: int) -> int:
    """How often daily work after a night has fallen due by now, at most `most` times."""
    first = due_at(day, hour)
    return 0 if now < first else min(most, (now - first).days + 1)


def _pieces(text: str) -> list[tuple[str, str | None, str | None]]:
    """Split the text into literal pieces and fields; a field has its name and the text after its colon."""
    pieces: list[tuple[str, str | None, str | None]] = []
    literal, i = "", 0
    while i < len(text):
        if text[i] == "}":
            raise ValueError("a } without its {")
        if text[i] != "{":
            literal, i = literal + text[i], i + 1
            continue
        depth, end = 1, i + 1
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            raise ValueError("a { without its }")
        name, colon, regex = text[i + 1:end - 1].partition(":")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{text[i:end]}: a field is named by small letters, digits and _")
        if literal:
            pieces.append((literal, None, None))
        pieces.append(("", name, regex if colon else None))
        literal, i = "", end
    if literal:
        pieces.append((literal, None, None))
    return pieces
