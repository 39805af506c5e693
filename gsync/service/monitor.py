"""The monitor: one per node and state directory. It keeps a worker running for each started session, and a recorder for
each volume of such sessions.

Promise: none runs twice, since lock files decide; one that dies is restarted with growing pauses, and its status says
why; one that is silent for too long is killed. They are independent of the monitor: when it exits, they keep running,
and the next monitor finds them by their locks. A volume's recorder runs from the first start of one of its sessions
until the last of them is deleted, since a stopped session needs the history of the time between to resume. A recorder
that something else started (systemd, `gsync run`) is used and left alone.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator

from gsync.base import log
from gsync.base.durable import make_dirs
from gsync.base.errors import Faulty, GsyncError
from gsync.base.log import get_logger
from gsync.base.notify import Notifier
from gsync.base.process import Lock
from gsync.base.retry import Schedule
from gsync.service.child import recorder_args
from gsync.service.glusterwatch import GlusterWatch
from gsync.service.kept import RESTARTS, ProcessSpec, Wakeups, complaint, popen_detached, recorder_spec, worker_spec
from gsync.service.managed import Managed
from gsync.service.views import Sessions, View
from gsync.session.control import Print, Wanted, file_print
from gsync.session.metavolume import mount_at
from gsync.session.options import Options
from gsync.session.session import Session
from gsync.state.home import Home, Volume

_log = get_logger(__name__)

LOOK = 0.5              # s between two looks at the files


def monitor_lock(home: Home) -> Lock:
    """The lock that this node's monitor holds."""
    return Lock(os.path.join(home.path, "monitor.lock"), "a monitor of this node")


def monitor_log(home: Home) -> str:
    return os.path.join(home.path, "monitor.log")


def worker_argv(session: Session, home: Home) -> list[str]:
    """-P: imports nothing from the current directory."""
    brick = [] if session.part is None else ["--brick", str(session.part.brick)]
    return [sys.executable, "-P", "-m", "gsync.service.run_worker", session.name, "--home", home.path, *brick,
            "--managed"]


def recorder_argv(volume: str, home: Home, site: Options) -> list[str]:
    return [sys.executable, "-P", "-m", "gsync.recorder", *recorder_args(volume, home.path, site), "--managed"]


def start_in_background(home: Home, patience: float = 30.0) -> int:
    """Start a monitor that outlives this process; return its pid once it holds its lock. GsyncError if it does not
    start."""
    lock = monitor_lock(home)
    make_dirs(home.path)
    said = os.path.join(home.path, "monitor.stderr")
    argv = [sys.executable, "-P", "-m", "gsync", "monitor", "--state", home.path]
    child = popen_detached(argv, said)
    end = time.monotonic() + patience
    while (pid := lock.holder()) is None and time.monotonic() < end:
        if child.poll() is not None and lock.holder() is None:
            raise GsyncError(f"monitor did not start: {complaint(said) or f'exit code {child.returncode}'}")
        time.sleep(0.02)
    if pid is None:
        raise GsyncError(f"monitor, pid {child.pid}, was not ready within {patience:.0f} s; see {said}")
    return pid


def session_worker(session: Session, home: Home) -> ProcessSpec:
    """The worker of a session on this node."""
    return worker_spec(session, worker_argv(session, home))


def volume_recorder(volume: Volume, home: Home, site: Options) -> ProcessSpec:
    """The recorder of a volume on this node."""
    return recorder_spec(f"recorder of volume {volume.name}", volume.brick(), site.worker_timeout,
                         recorder_argv(volume.name, home, site))


class Monitor:
    """`run` does everything; a test may call `step` instead.

    worker, recorder: make the process for a session and for a volume. mounted: returns the mount at a path.
    """

    def __init__(self, home: Home, *, schedule: Schedule = RESTARTS, notifier: Notifier | None = None,
                 worker: Callable[[Session, Home], ProcessSpec] = session_worker,
                 recorder: Callable[[Volume, Home, Options], ProcessSpec] = volume_recorder,
                 managed: Callable[[ProcessSpec, Schedule], Managed] = Managed,
                 mounted: Callable[[str], object | None] = mount_at, look: float = LOOK) -> None:
        self._home = home
        self._schedule = schedule
        self._notifier = notifier or Notifier({})
        self._worker, self._recorder, self._managed = worker, recorder, managed
        self._look = look
        self.sessions = Sessions(home, mounted)
        self.workers: dict[str, Managed] = {}
        self.recorders: dict[str, Managed] = {}
        self._seen: dict[str, View] = {}
        self._volumes: dict[str, tuple[Print, Volume]] = {}
        self._gluster = GlusterWatch(home)
        self._site: Options | None = None

    def run(self) -> None:
        """Run until SIGTERM or SIGINT. LockedError, with its pid, if a monitor already runs."""
        make_dirs(self._home.path)
        with monitor_lock(self._home) as lock, Wakeups() as wakeups:
            log.setup("INFO", monitor_log(self._home), owner=True, also_stderr=sys.stderr.isatty())
            _log.info("monitor started", pid=os.getpid(), home=self._home.path)
            self.step()
            self._notifier.ready()
            while wakeups.asked is None:
                if not lock.stands():
                    raise Faulty(f"{lock.path} is gone: the state directory was removed or replaced")
                self._notifier.alive()
                log.set_level(self.sessions.site.log_level)
                wakeups.wait(self._look, self._all())
                self.step()
            self._notifier.stopping()
            _log.info("monitor exits, workers and recorders keep running",
                      running=sum(kept.running is not None for kept in self._all()))
            for kept in self._all():
                if kept.running is not None:
                    kept.running.close()

    def step(self) -> None:
        """Look at everything once, and do everything that is due."""
        self.sessions.look()
        self._plan_workers()
        self._plan_recorders()
        for kept in [*self.recorders.values(), *self.workers.values()]:
            kept.step()
        for keepers in (self.workers, self.recorders):
            for name in [n for n, kept in keepers.items() if not kept.wanted and kept.running is None]:
                del keepers[name]
        workers, recorders = (sum(kept.running is not None for kept in keepers.values())
                              for keepers in (self.workers, self.recorders))
        self._notifier.says(f"{len(self.sessions.views)} sessions; running: {workers} workers, {recorders} recorders")

    def _all(self) -> Iterator[Managed]:
        yield from self.workers.values()
        yield from self.recorders.values()

    def _plan_workers(self) -> None:
        views = {part.title: dataclasses.replace(view, session=part) for view in self.sessions.views.values()
                 for part in self._parts(view.session)}
        for title in self.workers.keys() - views.keys():
            self.workers[title].want(False)
        for title, view in views.items():
            kept = self.workers.get(title)
            wanted = view.wanted in (Wanted.STARTED, Wanted.PAUSED) and self._has_brick(view.session)
            if kept is None and (wanted or view.wanted is Wanted.STOPPED):
                kept = self.workers[title] = self._managed(self._worker(view.session, self._home), self._schedule)
            if kept is None:
                continue
            anew = self._seen.get(title) != view
            if anew:
                kept.renew(self._worker(view.session, self._home))
            kept.want(wanted, anew)
            kept.hinder(self.sessions.broken.get(view.session.name, "") or self.sessions.broken.get("", ""))
        self._seen = views

    def _parts(self, session: Session) -> list[Session]:
        """The session as each of its workers on this node has it; read again when the volume's file has changed."""
        path = os.path.join(self._home.path, "volumes", session.volume, "volume.json")
        seen = file_print(path)
        known = self._volumes.get(session.volume)
        if known is not None and known[1].gluster is not None:
            self._gluster.look(known[1])
        if known is None or known[0] != seen:
            try:
                known = seen, self._home.get(session.volume)
            except GsyncError:
                return [session]  # its worker reports that
            self._volumes[session.volume] = known
        return session.parts(known[1])

    def _has_brick(self, session: Session) -> bool:
        """Whether this node has a brick of the session's volume: a session concerns only nodes that do."""
        return not session.on_meta_volume or os.path.isdir(os.path.join(self._home.path, "volumes", session.volume))

    def _plan_recorders(self) -> None:
        needed = {view.session.volume for view in self.sessions.views.values() if view.wanted is not Wanted.CREATED}
        if "" in self.sessions.broken:
            needed |= self.recorders.keys()
        for name in self.recorders.keys() - needed:
            self.recorders[name].want(False)
        anew, self._site = self._site != self.sessions.site, self.sessions.site
        for name in sorted(needed):
            kept = self.recorders.get(name)
            if kept is None or anew:
                try:
                    volume = self._home.get(name)
                except GsyncError:
                    continue  # the workers of its sessions report that
                if volume.kind != "posix":
                    continue  # it records by itself
                spec = self._recorder(volume, self._home, self._site)
                if kept is None:
                    kept = self.recorders[name] = self._managed(spec, self._schedule)
                else:
                    kept.renew(spec)
            kept.want(True, anew)
