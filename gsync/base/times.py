"""Reads and shows durations, sizes, rates and moments.

A duration needs a unit (30s, 5m, 1.5h, 7d, 2w), except 0. Existing settings files may hold bare numbers: their reader
passes the unit that the setting documents. Sizes are in bytes; K to T are powers of 1024. Parsers raise ValueError with
the accepted form.
"""

from __future__ import annotations

import re
import time

from gsync.base.model import NS

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_MOMENT = re.compile(r"\d{1,11}(\.\d{1,9})?")
_AGO = re.compile(r"(\d\S*\s*[smhdw])(?:\s+ago)?", re.IGNORECASE)


# as people write them

def parse_duration(text: str, bare: str = "") -> float:
    """Seconds. bare: the unit of a number without one, such as "s"; "" refuses such a number."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a duration such as 30s, 12h or 7d")
    value, unit = float(match[1]), match[2].lower() or bare
    if not unit and value:
        raise ValueError(f"give the unit of {match[1]}: s, m, h, d or w, as in {match[1]}s")
    return value * _SECONDS[unit or "s"]


def parse_size(text: str) -> int:
    """Bytes of "500K", "10M", "1.5G" or a plain number."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a number of bytes such as 500K or 10M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def parse_rate(text: str) -> int:
    """Bytes per second of "500K", "10MiB/s" or a plain number."""
    try:
        return parse_size(re.sub(r"/s$", "", text.strip(), flags=re.IGNORECASE))
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a rate such as 500K or 10M") from None


def parse_moment(text: str, now: int) -> int:
    """ns since the epoch of "now", seconds since the epoch, RFC 3339, or "2026-11-23 12:00" in local time."""
    text = text.strip()
    if text == "now":
        return now
    if _MOMENT.fullmatch(text):
        seconds, _, part = text.partition(".")
        return int(seconds) * NS + int(part.ljust(9, "0") or 0)
    import calendar
    from datetime import datetime

    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.astimezone()  # local time
    return calendar.timegm(moment.utctimetuple()) * NS + moment.microsecond * 1000


def parse_past(text: str, now: int) -> int:
    """The same; also "2h ago" or "3d"."""
    match = _AGO.fullmatch(text.strip())
    try:
        return now - int(parse_duration(match[1]) * NS) if match else parse_moment(text, now)
    except ValueError:
        raise ValueError("not a time such as 2h or 3d (ago), 2026-11-23 or 2026-11-23T12:00:00Z") from None


# as settings files hold them

def written_duration(seconds: float) -> str:
    """As short as possible; `parse_duration` reads it back."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds) // _SECONDS[unit]}{unit}"
    return f"{seconds:g}s" if seconds else "0"


def written_size(value: float) -> str:
    """Likewise for `parse_size`."""
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if value and value % 1024 ** power == 0:
            return f"{int(value) // 1024 ** power}{unit}"
    return str(value)


# for people

def shown_duration(seconds: float) -> str:
    """4.2 s, 1:05, 3:02:01, 2 d 3 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def shown_size(count: float) -> str:
    """512 B, 1.5 KiB, 123 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("not reached")


def rfc3339(ns: int | None) -> str | None:
    """A time in ns since the epoch, in UTC to the microsecond; None stays None."""
    if ns is None:
        return None
    seconds, rest = divmod(ns, NS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1000:06}Z"
