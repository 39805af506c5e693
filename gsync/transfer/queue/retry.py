"""The fate of a failed transfer: one policy for the queue, archive, delivery and send.

A try is charged if the transfer itself may be at fault. A store that is down charges no try: it is banned for a while,
and the transfers wait for it. Corrupt data is fetched again, from another replica if there is one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gsync.base.model import NS
from gsync.base.retry import Schedule
from gsync.transfer.stores.store import Category


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """again: time of the next try, ns since the epoch; None: never, the transfer has FAILED. charged: whether this try
    counts. ban: how long to ban the store, ns; 0: not at all."""

    again: int | None
    charged: bool
    ban: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """max_retries: tries after the first one. The pause before try n+1 is first_pause * 2^(n-1), at most longest_pause,
    plus or minus a quarter (seconds). ban: seconds for which a store that is down is left alone."""

    max_retries: int = 3
    first_pause: float = 5.0
    longest_pause: float = 3600.0
    ban: float = 60.0
    rng: Callable[[], float] = random.random

    def judge(self, category: Category, tries: int, now: int) -> RetryDecision:
        """Decide after `tries` tries, this one included if it is charged; now in ns since the epoch."""
        if category is Category.PERMANENT:
            return RetryDecision(None, True)
        if category is Category.STORE_DOWN:
            ban = int(self.ban * NS)
            return RetryDecision(now + ban + int(self.rng() * NS), False, ban)
        if tries > self.max_retries:
            return RetryDecision(None, True)
        return RetryDecision(now + int(self.pause(tries) * NS), True)

    def pause(self, tries: int) -> float:
        """Seconds to wait after so many tries."""
        return Schedule(self.first_pause, self.longest_pause, spread=0.25).pause(tries, self.rng)
