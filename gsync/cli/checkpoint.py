"""`gsync checkpoint`: a time, and whether the slave holds everything up to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gsync.session.session import Session
    from gsync.state.home import Home

VERBS = ("now", "status", "wait")
LOOK_EVERY = 0.2  # seconds
_FORMS = "now, RFC 3339 (2026-11-23T12:00:00Z), \"2026-11-23 12:00\" in local time, or seconds since 1970"


def checkpoint(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[SESSION] now|TIME|status|wait", help="What to do. SESSION is optional if there is only one.",
        autocompletion=completion.words(VERBS))] = None,
    timeout: Annotated[float | None, typer.Option(
        metavar="SECONDS", min=0, help="With wait, give up after this time with exit code 1.")] = None,
    json: JsonOption = False,
    state: StateOption = None,
) -> int:
    """Set a checkpoint, show it, or wait for it.

    A checkpoint is reached once the slave holds everything up to its time. `now` or a TIME sets it: RFC 3339,
    "2026-11-23 12:00" in local time, or seconds since 1970. `status` shows whether it is reached. `wait` exits with 0
    once it is reached.
    """
    import time

    from gsync.base.errors import UsageError
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    name, verb, moment = parse(words or [], time.time_ns())
    if timeout is not None and verb != "wait":
        raise UsageError("checkpoint --timeout: it needs wait")
    home = Home(state)
    session = SessionHome(home).the(name)
    if moment is not None:
        _set(session, home, moment)
    elif verb == "wait":
        return _wait(session, home, timeout, json)
    _print(_standing(session, home), json, was_set=moment is not None)
    return 0


def parse(words: Sequence[str], now: int) -> tuple[str | None, str, int | None]:
    """Session (None: the only one), verb, and the time (ns) to set. UsageError."""
    from gsync.base.errors import UsageError
    from gsync.base.times import parse_moment

    for at in range(min(2, len(words))):
        name, rest = (words[0] if at else None), " ".join(words[at:])
        if rest in ("status", "wait"):
            return name, rest, None
        try:
            return name, "set", parse_moment(rest, now)
        except ValueError:
            continue
    raise UsageError(f"checkpoint {' '.join(words)}".rstrip() + f": give status, wait, or a time: {_FORMS}")


def _set(session: Session, home: Home, moment: int) -> None:
    from gsync.recorder.port import port_of
    from gsync.session.checkpoint import Checkpoint
    from gsync.session.status import WorkerStatus

    status = WorkerStatus.read(session.worker_status)
    Checkpoint(session.checkpoint, session.checkpoint_reached).set(moment, status.stime if status else None)
    for volume in home.list():
        if volume.name == session.volume:
            port_of(volume).poke()  # on a quiet tree time passes sooner so


def _standing(session: Session, home: Home) -> dict[str, Any]:
    """The session's checkpoint, and each brick's progress. UsageError if none is set."""
    from dataclasses import asdict

    from gsync.base.errors import UsageError
    from gsync.base.times import rfc3339
    from gsync.session.checkpoint import Checkpoint
    from gsync.session.report import CheckpointReport, Reports

    moment = Checkpoint(session.checkpoint, session.checkpoint_reached).time()
    if moment is None:
        raise UsageError(f"session {session.name}: no checkpoint is set; use gsync checkpoint {session.name} now")
    report = Reports(home).of(session)
    unreadable = CheckpointReport(rfc3339(moment), False, None)  # the meta volume hangs, or the like
    bricks = [{"node": brick.node, "path": brick.path, "subvolume": brick.subvolume, "state": brick.state,
               "stime": brick.stime, **asdict(brick.checkpoint or unreadable)} for brick in report.bricks]
    # All nodes have the same tree, or the same part of it: that is at the slave when one worker has brought it there.
    first: dict[int, str | None] = {}
    for brick in sorted(bricks, key=lambda brick: brick["reached_at"] or "~"):
        if brick["reached"]:
            first.setdefault(brick["subvolume"], brick["reached_at"])
    reached = first.keys() == {brick["subvolume"] for brick in bricks}
    times = [at for at in first.values() if at]
    return {"session": session.name, "state": report.state, "time": bricks[0]["time"], "reached": reached,
            "reached_at": max(times) if reached and times else None, "bricks": bricks}


def _wait(session: Session, home: Home, timeout: float | None, json: bool) -> int:
    import sys
    import time

    end = None if timeout is None else time.monotonic() + timeout
    warned = False
    while True:
        standing = _standing(session, home)
        if standing["reached"] or (end is not None and time.monotonic() >= end):
            _print(standing, json)
            return 0 if standing["reached"] else 1
        if standing["state"] != "Started" and not warned:
            warned = True
            print(f"gsync: session {session.name} is {standing['state']}; it reaches the checkpoint only when it is "
                  "started", file=sys.stderr)
        time.sleep(LOOK_EVERY)


def _print(standing: dict[str, Any], json: bool, *, was_set: bool = False) -> None:
    from gsync.cli.output import print_json, print_table
    from gsync.cli.status import when

    if json:
        print_json(standing)
        return
    name = standing["session"]
    if was_set:
        print(f"{name}: the checkpoint is {when(standing['time'])} UTC"
              + ("" if standing["reached"] else f"; to wait for it: gsync checkpoint {name} wait"))
        return
    print_table(["SESSION", "NODE", "STATUS", "CHECKPOINT", "REACHED", "REACHED AT", "LAST SYNCED"],
                [[name, brick["node"], brick["state"] if standing["state"] == "Started" else standing["state"],
                  when(brick["time"]), "yes" if brick["reached"] else "no", when(brick["reached_at"]),
                  when(brick["stime"])] for brick in standing["bricks"]])
