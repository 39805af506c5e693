"""Shows a run: one live line on a terminal, otherwise log lines, and JSON events on request.

A RunView is the supervisor's Observer. It only prints, each change once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from gsync.base.log import get_logger
from gsync.base.model import NS
from gsync.base.times import rfc3339, shown_duration, shown_size
from gsync.cli.output import print_json
from gsync.service.kept import Ending
from gsync.session.status import WorkerStatus

log = get_logger("gsync.run")

PROGRESS_EVERY = 1.0  # seconds between two progress events


class Totals:
    """Files and bytes of the whole run and all workers: a restarted worker counts from zero."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[int, int]] = {}  # by pid

    def take(self, statuses: Sequence[WorkerStatus]) -> tuple[int, int]:
        for status in statuses:
            if status.pid is not None:
                self._done[status.pid] = status.files_done, status.bytes_done
        return sum(files for files, _ in self._done.values()), sum(size for _, size in self._done.values())


def _of(done: str, total: str | None) -> str:
    return done if total is None or total == done else f"{done} of {total}"


def progress_line(status: WorkerStatus, files: int, size: int) -> str:
    """The live line: state or phase, files, bytes, rate, time left, lag, failures."""
    count = f"{files:,} files"
    if status.state != "Active":
        return f"{status.state}: {status.reason}" if status.reason else "connecting"
    parts = ["in sync" if status.in_step else status.phase]
    if status.in_step:
        parts += [count, shown_size(size)]
        if status.lag_seconds is not None:
            parts.append(f"lag {shown_duration(status.lag_seconds)}")
    else:
        earlier = files - status.files_done, size - status.bytes_done
        total = None if status.files_total is None else f"{status.files_total + earlier[0]:,} files"
        parts.append(_of(f"{files:,}" if total else count, total))
        parts.append(_of(shown_size(size), None if status.bytes_total is None
                         else shown_size(status.bytes_total + earlier[1])))
        parts += [f"{status.rate['files']:,.0f} files/s", f"{shown_size(status.rate['bytes'])}/s"]
        if status.eta_seconds is not None:
            parts.append(f"{shown_duration(status.eta_seconds)} left")
    if status.failures:
        parts.append(f"{status.failures:,} failures")
    if status.held:
        parts.append(f"{status.held:,} held")
    return " · ".join(parts)


class LiveLine:
    """One line on stderr that is redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True, highlight=False, markup=False), auto_refresh=False,
                          transient=True)
        self._live.start()

    def show(self, text: str) -> None:
        from rich.text import Text

        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def say(self, text: str) -> None:
        """Print a line above, which stays."""
        from rich.text import Text

        self._live.console.print(Text(text))

    def close(self) -> None:
        self._live.stop()


class RunView:
    """Watches one run. `keep` takes the children's own lines, for the session's log."""

    def __init__(self, session: str, keep: Callable[[str], None], *, json: bool, live: LiveLine | None) -> None:
        self._session = session
        self._keep = keep
        self._json = json
        self._live = live
        self._started = time.monotonic()
        self._shown: tuple[Any, ...] = ()
        self._progress: tuple[Any, ...] = ()
        self._progress_at = 0.0
        self._been_in_step = False
        self._lacks: list[str] = []
        self.totals = Totals()

    def event(self, kind: str, **fields: Any) -> None:
        if self._json:
            print_json({"event": kind, "time": rfc3339(time.time_ns()), "session": self._session, **fields})

    def heard(self, child: str, line: str) -> None:
        self._keep(line)

    def ended(self, child: str, ending: Ending, pause: float | None) -> None:
        log.warning(f"{child} exited", reason=ending.line, restart_in=pause)
        self.event("restart", child=child, reason=ending.line, pause_seconds=pause)

    def tick(self, statuses: Sequence[WorkerStatus]) -> None:
        files, size = self.totals.take(statuses)
        status = WorkerStatus.of_all(statuses)
        shown = (status.state, status.reason, status.crawl)
        if shown != self._shown:
            self._shown = shown
            fields = {"crawl": status.crawl} if status.crawl != "N/A" else {}
            if status.reason:
                fields["reason"] = status.reason
            log.info("worker", state=status.state, **fields)
            self.event("state", state=status.state, reason=status.reason, crawl=status.crawl)
        if status.lacks and status.lacks != self._lacks:
            self._lacks = status.lacks
            text = f"the slave cannot store {', '.join(status.lacks)}; gsync status counts what is lost"
            log.warning(text)
            self.event("lacks", kinds=status.lacks)
            if self._live is not None:
                self._live.say(text)
        if status.in_step and not self._been_in_step:
            self._been_in_step = True
            log.info("in sync", files=files, bytes=size, took=time.monotonic() - self._started)
            self.event("in step", files=files, bytes=size, seconds=self._seconds())
        progress = (status.phase, files, size, status.files_total, status.in_step, status.failures, status.held)
        if progress != self._progress and time.monotonic() - self._progress_at >= PROGRESS_EVERY:
            self._progress, self._progress_at = progress, time.monotonic()
            self.event("progress", phase=status.phase, in_step=status.in_step, files=files, bytes=size,
                       files_total=status.files_total, bytes_total=status.bytes_total, rate=status.rate,
                       eta_seconds=status.eta_seconds, lag_seconds=status.lag_seconds, pending=status.pending,
                       failures=status.failures, held=status.held)
        if self._live is not None:
            self._live.show(progress_line(status, files, size))

    def finish(self, statuses: Sequence[WorkerStatus], exit_code: int) -> str:
        """The summary: as an event and a log line, and as text for a terminal."""
        files, size = self.totals.take(statuses)
        status = WorkerStatus.of_all(statuses)
        log.info("done", files=files, bytes=size, failures=status.failures, held=status.held,
                 stime=rfc3339(status.stime), took=time.monotonic() - self._started)
        self.event("done", exit_code=exit_code, files=files, bytes=size, failures=status.failures,
                   held=status.held, stime=rfc3339(status.stime), seconds=self._seconds())
        text = f"{files:,} files, {shown_size(size)} in {shown_duration(time.monotonic() - self._started)}"
        if status.stime is not None:
            behind = (time.time_ns() - status.stime) / NS
            text += f"; the slave holds everything up to {shown_duration(max(behind, 0.0))} ago"
        if status.failures or status.held:
            text += f"; {status.failures:,} failures, {status.held:,} held: see gsync failures and gsync hold"
        return text

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)
