"""The threads that move file data: each takes what is in the PostBox and moves it with an engine of its own.

Promise: every request sent gets exactly one result, or `results` raises. One bad file does not affect the others. If
the link breaks or the slave can take no data, all threads end, and `send` and `results` raise the error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from gsync.base.errors import GsyncError, Stopped
from gsync.base.log import get_logger
from gsync.sync.engine import Engine, Flow
from gsync.sync.postbox import Closed, FileRequest, PostBox, Result

_log = get_logger(__name__)

CAPACITY = 16384  # requests in the box
CAPACITY_BYTES = 128 << 20
SHARE = 4096  # requests per box: the more, the less the slave's index costs for each
VOLUME_SHARE = 100  # to a volume, which has no index and takes much longer for each: every receiver must get some
_PATIENCE = 0.5


class Syncer:
    """`jobs` threads; `make_engine` is called in each of them. `flow` counts the bytes sent. share: most requests of a
    box."""

    def __init__(self, jobs: int, make_engine: Callable[[Flow], Engine], flow: Flow, share: int = SHARE) -> None:
        self.flow = flow
        self.files = 0
        self.errors = 0
        self._make_engine = make_engine
        self._postbox = PostBox(CAPACITY, CAPACITY_BYTES, share)
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._engines: list[Engine] = []
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"syncer {i}") for i in range(jobs)]
        for thread in self._threads:
            thread.start()

    def send(self, *requests: FileRequest) -> None:
        """Queue requests; blocks while too many are waiting. Raises the error that ended the syncer."""
        try:
            self._postbox.append(*requests)
        except Closed:
            self._raise()

    def results(self, wait: bool) -> list[Result]:
        """The results since the last call. With `wait`, wait up to half a second for the first, so that the caller can
        do other things too. Raises the error that ended the syncer."""
        with self._news:
            if wait and not self._results and not self._closed:
                self._news.wait(_PATIENCE)
            if not self._results and (self._error or (wait and self._closed)):
                self._raise()
            results, self._results = self._results, []
            return results

    def close(self) -> None:
        """Stop now and abort transfers under way. Returns when all threads have ended."""
        self._end(None)
        for thread in self._threads:
            thread.join()

    def _raise(self) -> None:
        raise self._error or Closed

    def _report(self, results: Sequence[Result]) -> None:
        good = sum(not result.errno for result in results)
        with self._news:
            self._results += results
            self.files += good
            self.errors += len(results) - good
            self._news.notify_all()

    def _end(self, error: BaseException | None) -> None:
        """Close everything; the first error is the one that is raised."""
        with self._news:
            first = not self._closed
            self._closed = True
            if first:
                self._error = error
            engines = list(self._engines)
            self._news.notify_all()
        self._postbox.close()
        self.flow.stop()
        for engine in engines:
            engine.abort()

    def _run(self) -> None:
        try:
            self._serve()
        except (Closed, Stopped):
            pass
        except Exception as exc:  # noqa: BLE001 a thread's top: `results` raises it
            if not isinstance(exc, GsyncError) and not self._closed:
                _log.error("a syncer thread failed", error=repr(exc))
            self._end(exc)

    def _serve(self) -> None:
        engine = self._make_engine(self.flow)
        try:
            with self._lock:
                if self._closed:
                    return
                self._engines.append(engine)
            out = False  # whether the engine may still have results to report
            while True:
                box = self._postbox.take(wait=not out)
                if box:
                    engine.move(box, self._report)
                else:
                    engine.flush(self._report)
                out = bool(box)
        finally:
            with self._lock:
                if engine in self._engines:
                    self._engines.remove(engine)
            engine.close()
