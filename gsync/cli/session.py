"""`gsync start`, `stop`, `pause`, `resume`: they write the wanted state; monitors and workers act on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption

if TYPE_CHECKING:
    from gsync.session.report import BrickReport
    from gsync.session.session import Session
    from gsync.state.home import Home

WAIT = 15.0         # s that start, pause and resume wait for the worker
WAIT_STOP = 30.0    # s: longer than what a worker that hangs is given before it is killed
LOOK = 0.1          # s between two looks

Names = Annotated[list[str] | None, typer.Argument(
    metavar="SESSION", help="Names of sessions. Optional if there is only one.",
    autocompletion=completion.sessions)]
All = Annotated[bool, typer.Option("--all", help="All sessions that the command applies to.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the result.")]


def start(names: Names = None, all_: All = False, no_wait: NoWait = False, json: JsonOption = False,
          state: StateOption = None) -> int:
    """Start sessions.

    They run until they are stopped, across reboots too.
    """
    return _Command("start", names, all_, no_wait, json, state).run()


def stop(names: Names = None, all_: All = False, no_wait: NoWait = False, json: JsonOption = False,
         state: StateOption = None) -> int:
    """Stop sessions.

    Changes are still recorded, so a session resumes where it stopped.
    """
    return _Command("stop", names, all_, no_wait, json, state).run()


def pause(names: Names = None, all_: All = False, no_wait: NoWait = False, json: JsonOption = False,
          state: StateOption = None) -> int:
    """Pause sessions.

    Nothing is sent, but the connections stay open.
    """
    return _Command("pause", names, all_, no_wait, json, state).run()


def resume(names: Names = None, all_: All = False, no_wait: NoWait = False, json: JsonOption = False,
           state: StateOption = None) -> int:
    """Resume paused sessions."""
    return _Command("resume", names, all_, no_wait, json, state).run()


class _Command:
    """One of the four, for one or several sessions. A failure of one session does not keep the others from being
    handled."""

    def __init__(self, verb: str, names: list[str] | None, all_: bool, no_wait: bool, json: bool,
                 state: str | None) -> None:
        from gsync.session.control import Wanted
        from gsync.session.report import Reports
        from gsync.session.session import SessionHome
        from gsync.state.home import Home

        self.verb, self.names, self.all, self.json = verb, names or [], all_, json
        self.wait = not no_wait
        self.home: Home = Home(state)
        self.sessions = SessionHome(self.home)
        self.reports = Reports(self.home)
        self.wanted = {"start": Wanted.STARTED, "resume": Wanted.STARTED, "pause": Wanted.PAUSED,
                       "stop": Wanted.STOPPED}[verb]

    def run(self) -> int:
        import time

        from gsync.base.errors import GsyncError, UsageError
        from gsync.cli.output import print_error, print_json

        if self.all and self.names:
            raise UsageError(f"{self.verb}: give either --all or names of sessions")
        results: list[dict[str, Any]] = []
        code = 0

        def failed(name: str, exc: GsyncError) -> None:
            nonlocal code
            code = code or exc.exit_code
            print_error(str(exc))
            results.append({"name": name, "state": None, "worker": None, "pid": None, "reason": str(exc)})

        ordered: list[tuple[Session, int]] = []
        for name in self._chosen():
            since = time.time_ns()
            try:
                session = self.sessions.get(name)
                if self._order(session):
                    ordered.append((session, since))
            except GsyncError as exc:
                failed(name, exc)
        if ordered and self.verb != "stop":
            self._have_monitor()
        for session, since in ordered:
            try:
                results.append(self._outcome(session, since))
            except GsyncError as exc:
                failed(session.name, exc)
        if self.json:
            print_json(results)
        return code

    def _chosen(self) -> list[str]:
        if self.all:
            return self.sessions.names()
        return self.names or [self.sessions.the(None).name]

    def _say(self, text: str) -> None:
        if not self.json:
            print(text, flush=True)

    # the order

    def _order(self, session: Session) -> bool:
        """Write the wanted state; False if there is nothing to do. GsyncError if the command does not apply."""
        from gsync.base.errors import LockedError, UsageError
        from gsync.base.process import Lock
        from gsync.session.control import Wanted, read_wanted, write_wanted

        name = session.name
        runs = Lock(session.run_lock, "").holder()
        if runs is not None:
            if self.all:
                return False
            raise LockedError(f"session {name}: `gsync run` is running it, pid {runs}; stop that first")
        try:
            now = read_wanted(session)
        except UsageError:
            if self.verb not in ("start", "stop"):
                raise
            now = Wanted.CREATED  # it is damaged, and is written anew
        sense = {"start": (Wanted.CREATED, Wanted.STOPPED, Wanted.STARTED), "pause": (Wanted.STARTED, Wanted.PAUSED),
                 "resume": (Wanted.PAUSED,), "stop": tuple(Wanted)}[self.verb]
        if now not in sense:
            if self.all:
                return False
            hint = {("start", Wanted.PAUSED): f"it is paused; use gsync resume {name}",
                    ("resume", Wanted.STARTED): "it is not paused",
                    ("resume", Wanted.CREATED): f"it was never started; use gsync start {name}",
                    ("resume", Wanted.STOPPED): f"it is stopped; use gsync start {name}"}
            raise UsageError(f"session {name}: cannot {self.verb}: "
                             + hint.get((self.verb, now), f"it is not started; use gsync start {name}"))
        if self.verb == "stop" and now is Wanted.CREATED:
            self._say(f"{name}: was never started")
            return False
        if now is not self.wanted:
            write_wanted(session, self.wanted)
        return True

    def _have_monitor(self) -> None:
        import sys

        from gsync.service.monitor import monitor_lock, start_in_background

        if monitor_lock(self.home).holder() is None:
            pid = start_in_background(self.home)
            print(f"gsync: no monitor was running on this node: started one in the background, pid {pid}; to start it "
                  "at boot, install conf/gsync-monitor.service", file=sys.stderr, flush=True)

    # what comes of it

    def _outcome(self, session: Session, since: int) -> dict[str, Any]:
        """Wait for the result and print it; GsyncError if the worker is Faulty."""
        if not self.wait:
            self._say(f"{session.name}: {_PAST[self.verb]}")
        elif self.verb == "stop":
            self._wait_for_end(session)
        else:
            self._wait_for_worker(session, since)
        brick = self._brick(session)
        return {"name": session.name, "state": self.wanted.value, "worker": brick.state, "pid": brick.pid,
                "reason": brick.reason}

    def _brick(self, session: Session) -> BrickReport:
        """The status of this node's worker, or of another node's if this one has none."""
        return self.reports.of(session).bricks[0]

    def _wait_for_worker(self, session: Session, since: int) -> None:
        from gsync.base.errors import Faulty, SlaveError
        from gsync.session.status import WorkerStatus

        wanted = ("Paused",) if self.verb == "pause" else ("Active", "Passive")

        def come() -> bool:
            status = WorkerStatus.read(session.worker_status)
            return self._brick(session).state in wanted or (
                status is not None and status.state == "Faulty" and status.updated > since)

        _wait(come, WAIT)
        brick = self._brick(session)
        said = f"{session.name}: {_PAST[self.verb]}"
        if brick.state == "Faulty":
            reason = brick.reason
            kind = SlaveError if reason.startswith("slave ") else Faulty
            raise kind(f"session {said}, but its worker is Faulty and will retry: {reason}")
        pid = f", pid {brick.pid}" if brick.pid else ""
        if brick.state in wanted:
            self._say(f"{said}; its worker is {brick.state}{pid}")
        else:
            self._say(f"{said}; its worker is still {brick.state}{pid}; see gsync status {session.name}")

    def _wait_for_end(self, session: Session) -> None:
        from gsync.base.process import Lock
        from gsync.service.kept import worker_spec
        from gsync.service.managed import Managed
        from gsync.service.monitor import monitor_lock

        kept = Managed(worker_spec(session, []))
        lock = Lock(session.worker_lock, "")

        def come() -> bool:
            if monitor_lock(self.home).holder() is None:  # nobody else would end a worker that hangs
                kept.want(False, anew=True)
                kept.step()
            return lock.holder() is None and self.reports.seen_working(session) is None

        _wait(come, WAIT_STOP)
        pid, node = lock.holder(), self.reports.seen_working(session)
        if pid is not None:
            self._say(f"{session.name}: stopped, but its worker, pid {pid}, has not exited yet")
        elif node is not None:
            self._say(f"{session.name}: stopped, but the worker on node {node} has not confirmed it; if that node is "
                      "down or unreachable, its worker exits once it sees the meta volume again")
        else:
            self._say(f"{session.name}: stopped")


_PAST = {"start": "started", "stop": "stopped", "pause": "paused", "resume": "resumed"}


def _wait(come: Callable[[], bool], seconds: float) -> None:
    """Until the condition holds, or the time is over."""
    import time

    end = time.monotonic() + seconds
    while not come() and time.monotonic() < end:
        time.sleep(LOOK)
