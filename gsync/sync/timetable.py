"""The bandwidth limit: one rate, or rates by the day of the week and the time of day.

Text: entries separated by `;`, each `[DAYS] [HH:MM-HH:MM] RATE`; the last one that matches the moment applies. RATE
is a number of bytes per second such as 500K or 10M, 0 is no limit; DAYS such as Mon-Fri or Sat,Sun; times are local, a
range over midnight belongs to the day on which it begins. `0; Mon-Fri 08:00-18:00 10M` limits office hours.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from gsync.base.times import parse_rate

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIMES = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)")
_DAY = 24 * 60


@dataclass(frozen=True)
class RateWindow:
    """A rate (bytes per second, 0: no limit) on these days (0: Monday), from start to end (minutes of the day; an end
    that is not after the start is on the next day)."""

    rate: int
    days: frozenset[int] = frozenset(range(7))
    start: int = 0
    end: int = _DAY

    def holds(self, day: int, minute: int) -> bool:
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        return (day in self.days and minute >= self.start) or ((day - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True)
class Timetable:
    """The limit at each moment; without a matching entry there is none."""

    entries: tuple[RateWindow, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Timetable:
        """Parse the text. ValueError names the part that is wrong."""
        return cls(tuple(_entry(part) for part in text.split(";") if part.strip()))

    @property
    def limits(self) -> bool:
        """Whether there is a limit at any time."""
        return any(entry.rate for entry in self.entries)

    def rate(self, when: time.struct_time) -> int | None:
        """Bytes per second at this local time, None: no limit."""
        minute = when.tm_hour * 60 + when.tm_min
        for entry in reversed(self.entries):
            if entry.holds(when.tm_wday, minute):
                return entry.rate or None
        return None


def _entry(text: str) -> RateWindow:
    words = text.split()
    rate = words.pop()
    if words and re.fullmatch(r"(?i)[KMGT]?(i?B)?(/s)?", rate):  # 10 M
        rate = words.pop() + rate
    value = parse_rate(rate)
    start, end = 0, _DAY
    if words and ":" in words[-1]:
        start, end = _times(words.pop())
    days = frozenset(day for word in ",".join(words).split(",") if word for day in _days(word)) or frozenset(range(7))
    return RateWindow(value, days, start, end)


def _times(text: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time range such as 08:00-18:00")
    hours, minutes = (int(match[1]), int(match[3])), (int(match[2]), int(match[4]))
    start, end = (hour * 60 + minute for hour, minute in zip(hours, minutes, strict=True))
    if max(minutes) > 59 or start >= _DAY or end > _DAY or start == end:
        raise ValueError(f"{text!r} is not a time range such as 08:00-18:00")
    return start, end


def _days(text: str) -> range | list[int]:
    first, dash, last = text.lower().partition("-")
    try:
        begin = _DAYS.index(first[:3] if len(first) >= 3 else first)
        end = _DAYS.index(last[:3] if len(last) >= 3 else last) if dash else begin
    except ValueError:
        raise ValueError(f"{text!r} is neither a day such as Mon nor a range of days such as Mon-Fri") from None
    return range(begin, end + 1) if begin <= end else [*range(begin, 7), *range(end + 1)]
