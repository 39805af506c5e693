"""Directories are read in parallel where the file system makes the batch wait, and only there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from gsync.engine.batch import READERS, Batch
from gsync.engine.worklist import EnumDir
from gsync.master.tree import DirReader


class Reader(DirReader):
    def __init__(self, number: int, look: Callable[[], object]) -> None:
        self._number, self._look = number, look

    def page(self, limit: int) -> list[Any]:
        self._look()
        return [(self._number, i) for i in range(limit)]


def batch_of(look: Callable[[], object]) -> Batch:
    batch = Batch(*[None] * 7, lambda: None)  # type: ignore[arg-type]
    batch._readers = [(EnumDir(bytes([n] * 16), None, True, False), Reader(n, look), None)  # type: ignore[misc]
                      for n in range(READERS)]
    return batch


def expected(limit: int) -> list[list[tuple[int, int]]]:
    return [[(number, i) for i in range(limit)] for number in range(READERS)]


def test_a_file_system_that_makes_us_wait_is_read_in_parallel() -> None:
    together = threading.Barrier(READERS, timeout=60)
    looks: list[Callable[[], object]] = [lambda: time.sleep(0.02)]
    batch = batch_of(lambda: looks[0]())
    assert batch._pages(3) == expected(3)
    looks[0] = together.wait  # nobody gets past it alone
    try:
        assert batch._pages(3) == expected(3)
    finally:
        assert batch._pool is not None
        batch._pool.shutdown()


def test_a_fast_one_is_read_by_one_thread() -> None:
    threads = set()
    batch = batch_of(lambda: threads.add(threading.get_ident()))
    for _ in range(3):
        assert batch._pages(2) == expected(2)
    assert threads == {threading.get_ident()}
