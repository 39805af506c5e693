"""Moves changelogs beyond a limit of age or size to the archive, but never one that a session still needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

from gsync.base.model import NS
from gsync.changelog import layout
from gsync.changelog.archive import ChangelogArchive
from gsync.changelog.htime import Htime
from gsync.changelog.layout import Changelog


class Purged(NamedTuple):
    """The result of a purge: deleted changelogs, and those beyond the limits that it kept because they are needed."""

    deleted: int
    deleted_bytes: int
    needed: int


def purge(folder: bytes, now: int, keep_seconds: int, keep_bytes: int, needed_from: int | None,
          archive: ChangelogArchive | None = None, forget: Callable[[int], None] = lambda ts: None) -> Purged:
    """Archive and delete the oldest changelogs: those older than keep_seconds, and as many as exceed keep_bytes.

    needed_from is the oldest stime (ns) that a session may resume from: later changelogs stay whatever the limits say.
    None: no session needs any. `now` is in whole seconds. The purge moves the start of history before it deletes, so an
    interrupted one leaves unused files, which the next one deletes. Only the process that writes the changelogs may
    purge them. forget: told of the ts up to which they go. Costs a stat of each.
    """
    total = sum(size for _, size in _sizes(folder))
    last, needed = None, 0
    for changelog, size in _sizes(folder):
        if total <= keep_bytes and changelog.ts >= now - keep_seconds:
            break
        total -= size
        if needed_from is None or changelog.ts * NS <= needed_from:
            last = changelog.ts
        else:
            needed += 1
    if last is None:
        return Purged(0, 0, needed)
    covered = layout.covered_from(folder)
    if covered is None or covered < last * NS:
        layout.set_covered_from(folder, last * NS)
    if archive is not None:
        archive.add(changelog for changelog in takewhile(lambda c: c.ts <= last, layout.stored(folder)))
    deleted = deleted_bytes = 0
    days = set()
    for changelog, size in _sizes(folder):
        if changelog.ts > last:
            break
        os.unlink(changelog.path)
        deleted, deleted_bytes = deleted + 1, deleted_bytes + size
        days.add(os.path.dirname(changelog.path))
    for day in sorted(days):
        _remove_empty(day, levels=3)
    _drop_lists(folder, last)
    forget(last)
    return Purged(deleted, deleted_bytes, needed)


def _sizes(folder: bytes) -> Iterator[tuple[Changelog, int]]:
    for changelog in layout.stored(folder):
        yield changelog, os.stat(changelog.path).st_size


def _remove_empty(path: bytes, levels: int) -> None:
    """Remove a folder if it is empty, then likewise those above it."""
    with suppress(OSError):
        for _ in range(levels):
            os.rmdir(path)
            path = os.path.dirname(path)


def _drop_lists(folder: bytes, ts: int) -> None:
    """Remove HTIME files that list nothing later than ts, except the newest, which is being written."""
    for _, path in layout.htime_paths(folder)[:-1]:
        last = Htime(path).last()
        if last is not None and last.ts > ts:
            break
        os.unlink(path)
