"""Limits on how much a recorder handles at a time, and on how much it keeps."""

from __future__ import annotations

from typing import NamedTuple

from gsync.recorder.hints import HintLimits
from gsync.recorder.scan import ScanSizes


class Keep(NamedTuple):
    """How long changelogs are kept, how many bytes of them, and how many bytes of older ones the archive holds."""

    seconds: int = 7 * 86400
    size: int = 1 << 30
    archive: int = 256 << 20


class Intervals(NamedTuple):
    """Seconds between two reports on a quiet tree, and between two checks whether the root is back."""

    heartbeat: float = 1.0
    root: float = 1.0


class Bounds(NamedTuple):
    hints: HintLimits = HintLimits()
    scan: ScanSizes = ScanSizes()
    keep: Keep = Keep()
    pace: Intervals = Intervals()


BOUNDS = Bounds()
