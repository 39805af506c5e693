"""`gsync status --check`: one verdict on the sessions, in the form of a Nagios plugin.

CRITICAL: replication has stopped unexpectedly, or lags too much. WARNING: it works, but needs attention, or somebody
has stopped it. docs/operating/status.md lists the rules; they are all in `_of_session` and `_of_brick`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from gsync.session.report import BrickReport, SessionReport

SHORT_RUNWAY = 86400.0  # seconds


class Health(IntEnum):
    """The value is the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class HealthVerdict:
    health: Health
    line: str


Say = Callable[[Health, str], None]


def verdict(reports: Sequence[SessionReport], max_lag: float | None, now: datetime | None = None) -> HealthVerdict:
    """max_lag: seconds."""
    if not reports:
        return HealthVerdict(Health.UNKNOWN, "UNKNOWN - there are no sessions")
    now = now or datetime.now(UTC)
    said: list[tuple[Health, str]] = []
    for report in reports:
        name = report.name

        def say(health: Health, text: str, name: str = name) -> None:
            said.append((health, f"{name}: {text}"))

        _of_session(report, say)
        for brick in report.bricks:
            _of_brick(report, brick, max_lag, now, say)
    worst = max((health for health, _ in said), default=Health.OK)
    texts = list(dict.fromkeys(text for health, text in sorted(said, key=lambda s: -s[0])))
    text = "; ".join(texts) or f"no problems in {len(reports)} session{'s' if len(reports) > 1 else ''}"
    return HealthVerdict(worst, f"{worst.name} - {_one_line(text)} | {_perfdata(reports, max_lag, now)}")


def _of_session(report: SessionReport, say: Say) -> None:
    states = {brick.state for brick in report.bricks}
    if report.state in ("Created", "Stopped", "Paused"):
        say(Health.WARNING, f"is {report.state}")
    elif report.state == "Started" and len(report.bricks) > 1 and "Active" not in states:
        say(Health.CRITICAL, "no worker is Active")


def _of_brick(report: SessionReport, brick: BrickReport, max_lag: float | None, now: datetime, say: Say) -> None:
    where = f" on {brick.node}" if len(report.bricks) > 1 else ""
    reason = f": {brick.reason}" if brick.reason else ""
    if brick.state == "Faulty":
        say(Health.CRITICAL, f"worker{where} is Faulty{reason}")
    if report.state == "Started":
        if brick.state == "Stopped":
            say(Health.CRITICAL, f"worker{where} is not running{reason}")
        elif brick.state == "Initializing":
            say(Health.WARNING, f"worker{where} is Initializing")
        if brick.recorder.state == "Faulty":
            say(Health.CRITICAL, f"recorder{where} is Faulty: {brick.recorder.reason}")
        elif brick.recorder.state == "Stopped" and brick.state != "Stopped":
            say(Health.WARNING, f"no recorder is running{where}")
    if report.state in ("Started", "Paused"):
        behind = lag(brick, now)
        if max_lag is not None and brick.state != "Passive" and (behind is None or behind > max_lag):
            say(Health.CRITICAL, f"lag{where} is {_seconds(behind)}, more than {_seconds(max_lag)}")
        runway = brick.recorder.runway_seconds
        if runway is not None and runway < SHORT_RUNWAY:
            say(Health.WARNING, f"runway{where} is short: changelogs that are still needed exceed changelog-retention "
                f"in {_seconds(runway)}")
    if brick.failures:
        say(Health.WARNING, f"{brick.failures} failures{where}")
    if brick.held:
        say(Health.WARNING, f"{brick.held} deletes held{where}")


def lag(brick: BrickReport, now: datetime) -> float | None:
    """In seconds: as measured while the worker runs, else the age of the stime; None if the slave was never up to
    date."""
    if brick.lag_seconds is not None:
        return float(brick.lag_seconds)
    if brick.stime is None:
        return None
    return max(0.0, (now - datetime.fromisoformat(brick.stime)).total_seconds())


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _one_line(text: str) -> str:
    """Without |, which begins the figures."""
    return " ".join(text.replace("|", "/").split())


def _perfdata(reports: Sequence[SessionReport], max_lag: float | None, now: datetime) -> str:
    bricks = [brick for report in reports for brick in report.bricks]
    lags = [value for brick in bricks if brick.state != "Passive" and (value := lag(brick, now)) is not None]
    runways = [brick.recorder.runway_seconds for brick in bricks
               if brick.recorder.runway_seconds is not None]
    # one worker of a session at a time counts: the others see the same files
    failures = sum(max((brick.failures for brick in report.bricks), default=0) for report in reports)
    held = sum(max((brick.held for brick in report.bricks), default=0) for report in reports)
    pending = sum(sum(brick.pending.values()) for brick in bricks)
    values = [f"lag={max(lags):.1f}s;;{'' if max_lag is None else f'{max_lag:g}'};0" if lags else "lag=U",
              f"failures={failures};;;0", f"held={held};;;0", f"pending={pending};;;0"]
    if runways:
        values.append(f"runway={min(runways):.0f}s;;;0")
    return " ".join(values)
