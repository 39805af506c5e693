"""Chooses the engine: by the sync-method, and for `auto` per file.

`auto` gives large files that the slave already has to rsync, for its delta transfer, and everything else to the stream.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from gsync.base.errors import SlaveError
from gsync.link.client import SlaveClient
from gsync.link.link import Link
from gsync.sync.engine import Engine, Flow, Report, Source
from gsync.sync.postbox import FileRequest
from gsync.sync.rsync import RsyncEngine, RsyncSettings
from gsync.sync.tarssh import StreamEngine

DELTA_FROM = 4 << 20  # bytes; below, starting rsync costs more than it can save


class AutoEngine:
    """An Engine over two others. make_rsync: None where rsync cannot be used, or saves nothing."""

    direct = True

    def __init__(self, stream: Engine, make_rsync: Callable[[], Engine] | None, source: Source) -> None:
        self._stream = stream
        self._make_rsync = make_rsync
        self._rsync: Engine | None = None
        self._source = source

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        delta = [r for r in box if self._make_rsync and r.place == "P" and self._size(r) >= DELTA_FROM]
        chosen = set(delta)
        rest = [r for r in box if r not in chosen] if chosen else box
        if rest:
            self._stream.move(rest, report)
        if delta and self._make_rsync:
            if self._rsync is None:
                self._rsync = self._make_rsync()
            self._rsync.move(delta, report)

    def _size(self, request: FileRequest) -> int:
        """The present size; 0 if it is unknown: the stream then reports why."""
        with suppress(OSError):
            fd, st = self._source.open(request.gfid)
            os.close(fd)
            return st.st_size
        return 0

    def flush(self, report: Report) -> None:
        self._stream.flush(report)

    def abort(self) -> None:
        self._stream.abort()
        if self._rsync is not None:
            self._rsync.abort()

    def close(self) -> None:
        self._stream.close()
        if self._rsync is not None:
            self._rsync.close()


def engine_maker(method: str, link: Link, client: SlaveClient, source: Source, epoch: int,
                 rsync: RsyncSettings | None = None) -> Callable[[Flow], Engine]:
    """A maker of engines for a Syncer. method: rsync, tarssh or auto. rsync takes no 'D' requests."""
    if method == "rsync" and link.slave.is_volume:
        raise SlaveError(f"slave {link.slave}: sync-method rsync cannot write to a GlusterFS volume, where rsync "
                         f"can silently leave files empty; use auto or tarssh")

    def make_rsync(flow: Flow) -> Engine:
        return RsyncEngine(link, client, source, epoch, flow, rsync)

    def make_stream(flow: Flow) -> Engine:
        return StreamEngine(link, source, epoch, client.ticket, flow)

    def make_auto(flow: Flow) -> Engine:
        # Between two directories of one host a delta saves nothing: rsync itself would send files whole.
        pays = (link.slave.host is not None and not link.slave.is_volume and link.has_rsync()
                and (rsync or RsyncSettings()).there())
        return AutoEngine(make_stream(flow), (lambda: make_rsync(flow)) if pays else None, source)

    return {"rsync": make_rsync, "tarssh": make_stream, "auto": make_auto}[method]
