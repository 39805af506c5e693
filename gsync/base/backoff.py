"""How long to wait before something is tried again: the one formula for transfers and for the failure ledger."""

from __future__ import annotations

import random
from collections.abc import Callable


def pause(tries: int, first: float, longest: float, rng: Callable[[], float] = random.random) -> float:
    """Seconds before the next try after so many (1 and more): `first`, doubling, at most `longest`, give or take a
    quarter, so that what failed together does not come back together."""
    wait = min(first * 2.0 ** min(max(tries, 1) - 1, 30), longest)
    return wait * (0.75 + rng() / 2)
