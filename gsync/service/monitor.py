"""What `gsync monitor` does: one per node and state folder, it keeps a worker running for each session that is started
and a recorder for each volume that has such sessions.

Promise: none runs twice, since what counts is who holds a lock file; one that dies is started again, with growing
pauses, and its status says why; one that is silent for too long is killed. They are no part of the monitor: when it
ends, however it ends, they go on, and the next monitor finds them by their locks.
A volume's recorder runs from the first start of one of its sessions until the last of them is deleted: a session that
is stopped goes on from where it was, and that needs the history of the time between. A recorder that something else has
started (a unit of systemd, `gsync run`) is used, and left alone.
Not here: what workers and recorders do, and what is wanted of them (control).
"""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from gsync.base import log
from gsync.base.durable import make_dirs
from gsync.base.errors import Faulty, GsyncError
from gsync.base.log import get_logger
from gsync.base.notify import Notifier
from gsync.base.process import Lock
from gsync.service.child import recorder_args
from gsync.service.glusterwatch import GlusterWatch
from gsync.service.kept import Kept, RecorderDuty, WorkerDuty, complaint, popen
from gsync.service.supervisor import PAUSES
from gsync.session import config
from gsync.session.control import Print, Wanted, file_print, read_wanted
from gsync.session.metavolume import mount_at
from gsync.session.options import Options
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home, Volume

_log = get_logger(__name__)

TICK = 0.5              # s between two looks at the files
ANSWER = 1.0            # s that the meta volume has for an answer


def monitor_lock(home: Home) -> Lock:
    """Held by the monitor of this node."""
    return Lock(os.path.join(home.path, "monitor.lock"), "a monitor of this node")


def monitor_log(home: Home) -> str:
    return os.path.join(home.path, "monitor.log")


def worker_argv(session: Session, home: Home) -> list[str]:
    """-P: nothing is imported from the folder that somebody happens to be in."""
    brick = [] if session.part is None else ["--brick", str(session.part.brick)]
    return [sys.executable, "-P", "-m", "gsync.service.run_worker", session.name, "--home", home.path, *brick,
            "--managed"]


def recorder_argv(volume: str, home: Home, site: Options) -> list[str]:
    return [sys.executable, "-P", "-m", "gsync.recorder", *recorder_args(volume, home.path, site), "--managed"]


def start_in_background(home: Home, patience: float = 30.0) -> int:
    """Start a monitor that outlives this process; its pid, once it holds its lock. GsyncError: it does not start."""
    lock = monitor_lock(home)
    make_dirs(home.path)
    said = os.path.join(home.path, "monitor.stderr")
    argv = [sys.executable, "-P", "-m", "gsync", "monitor", "--state", home.path]
    child = popen(argv, said)
    end = time.monotonic() + patience
    while (pid := lock.holder()) is None and time.monotonic() < end:
        if child.poll() is not None and lock.holder() is None:
            raise GsyncError(f"the monitor does not start: {complaint(said) or f'exit code {child.returncode}'}")
        time.sleep(0.02)
    if pid is None:
        raise GsyncError(f"the monitor, pid {child.pid}, has not begun its work within {patience:.0f} s; see {said}")
    return pid


@dataclass(frozen=True)
class View:
    """A session as its files have it. prints: of all files that say so."""

    session: Session
    wanted: Wanted
    prints: tuple[Print, ...]


class Sessions:
    """All sessions that this node sees. One whose files cannot be read stays as it was, and `broken` says why."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._sessions = SessionHome(home)
        self._site_prints: tuple[Print, ...] = ()
        self._probe: threading.Thread | None = None
        self.site = Options()               # the settings of this node
        self.views: dict[str, View] = {}
        self.broken: dict[str, str] = {}    # by name; "": all

    def look(self) -> None:
        """Look at the files of all of them; read those that have changed."""
        before, self.broken = self.broken, {}
        try:
            prints = tuple(file_print(path) for path in config.site_paths(self._home.path))
            if prints != self._site_prints:
                sessions = SessionHome(self._home)
                self.site = sessions.site
                self._sessions, self._site_prints = sessions, prints
            absent = self._absent()
            if absent:
                names = {*self.views, *_names(os.path.join(self._home.path, "sessions"))}
            else:
                names = set(self._sessions.names())
            found = {name: self._view(name, prints, absent) for name in sorted(names)}
            self.views = {name: view for name, view in found.items() if view is not None}
        except (GsyncError, OSError) as exc:
            self.broken[""] = str(exc)
        for name, reason in self.broken.items():
            if before.get(name) != reason:
                _log.error("cannot be read, is left as it was", session=name or "all", reason=reason)

    def _view(self, name: str, site: tuple[Print, ...], absent: str) -> View | None:
        known = self.views.get(name)
        try:
            if known is not None:
                if known.session.on_meta_volume and absent:
                    self.broken[name] = absent
                    return known
                if site + _prints(known.session) == known.prints:
                    return known
            session = self._sessions.find(name)
            if session is None:
                return None
            if session.on_meta_volume and absent:
                self.broken[name] = absent
                return None
            prints = site + _prints(session)  # before it is read: a change meanwhile is seen the next time
            session = self._sessions.find(name)
            return None if session is None else View(session, read_wanted(session), prints)
        except (GsyncError, OSError) as exc:
            self.broken[name] = str(exc)
            return known

    def _absent(self) -> str:
        """Why the meta volume cannot be looked at; "" if it can, or if there is none. It is asked by a thread: a dead
        mount must not keep the monitor from looking after the other sessions."""
        if not self.site.use_meta_volume:
            return ""
        place = self.site.meta_volume_mnt
        if mount_at(place) is None:
            return f"meta volume {place} is not mounted"
        if self._probe is None or not self._probe.is_alive():
            self._probe = threading.Thread(target=_touch, args=(place,), name="meta volume", daemon=True)
            self._probe.start()
        self._probe.join(ANSWER)
        return f"meta volume {place} does not answer" if self._probe.is_alive() else ""


def _touch(path: str) -> None:
    with suppress(OSError):
        os.statvfs(path)


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _prints(session: Session) -> tuple[Print, ...]:
    return tuple(file_print(path) for path in (os.path.join(session.folder, "session.json"),
                                               os.path.join(session.shared, "session.json"),
                                               session.config, session.wanted))


class Monitor:
    """`run` does everything; a test may call `step` instead.

    worker, recorder: the commands that start them.
    """

    def __init__(self, home: Home, *, pauses: Sequence[float] = PAUSES, notifier: Notifier | None = None,
                 worker: Callable[[Session, Home], list[str]] = worker_argv,
                 recorder: Callable[[str, Home, Options], list[str]] = recorder_argv) -> None:
        self._home = home
        self._pauses = pauses
        self._notifier = notifier or Notifier({})
        self._worker_argv, self._recorder_argv = worker, recorder
        self.sessions = Sessions(home)
        self.workers: dict[str, Kept] = {}
        self.recorders: dict[str, Kept] = {}
        self._seen: dict[str, View] = {}
        self._volumes: dict[str, tuple[Print, Volume]] = {}
        self._gluster = GlusterWatch(home)
        self._site: Options | None = None
        self._ended = False
        self._wake_fd = -1

    def run(self) -> None:
        """Until SIGTERM or SIGINT. LockedError naming the pid of the monitor that runs already."""
        make_dirs(self._home.path)
        with monitor_lock(self._home) as lock, self._signals():
            log.setup("INFO", monitor_log(self._home), owner=True, also_stderr=sys.stderr.isatty())
            _log.info("monitor begins", pid=os.getpid(), home=self._home.path)
            self.step()
            self._notifier.ready()
            while not self._ended:
                if not lock.stands():
                    raise Faulty(f"{lock.path}: is gone, the state folder was removed or replaced")
                self._notifier.alive()
                log.set_level(self.sessions.site.log_level)
                self._wait()
                self.step()
            self._notifier.stopping()
            _log.info("monitor ends, workers and recorders go on",
                      running=sum(kept.running is not None for kept in self._all()))
            for kept in self._all():
                if kept.running is not None:
                    kept.running.close()

    def step(self) -> None:
        """Look at everything once, and do what is to be done."""
        self.sessions.look()
        self._plan_workers()
        self._plan_recorders()
        for kept in [*self.recorders.values(), *self.workers.values()]:
            kept.step()
        for keepers in (self.workers, self.recorders):
            for name in [n for n, kept in keepers.items() if not kept.wanted and kept.running is None]:
                del keepers[name]
        active = sum(kept.running is not None for kept in self.workers.values())
        self._notifier.says(f"{len(self.sessions.views)} sessions, {active} workers and "
                            f"{sum(kept.running is not None for kept in self.recorders.values())} recorders run")

    def _all(self) -> Iterator[Kept]:
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
                kept = self.workers[title] = Kept(self._worker(view.session), self._pauses)
            if kept is None:
                continue
            anew = self._seen.get(title) != view
            if anew:
                kept.duty = self._worker(view.session)
            kept.want(wanted, anew)
            kept.hinder(self.sessions.broken.get(view.session.name, "") or self.sessions.broken.get("", ""))
        self._seen = views

    def _parts(self, session: Session) -> list[Session]:
        """The session as its workers on this node have it; read anew when the volume's file has changed."""
        path = os.path.join(self._home.path, "volumes", session.volume, "volume.json")
        seen = file_print(path)
        known = self._volumes.get(session.volume)
        if known is not None and known[1].gluster is not None:
            self._gluster.look(known[1])
        if known is None or known[0] != seen:
            try:
                known = seen, self._home.get(session.volume)
            except GsyncError:
                return [session]  # its worker says so
            self._volumes[session.volume] = known
        return session.parts(known[1])

    def _worker(self, session: Session) -> WorkerDuty:
        return WorkerDuty(session, self._worker_argv(session, self._home))

    def _has_brick(self, session: Session) -> bool:
        """Of the sessions of all nodes only those whose volume this node has are its business."""
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
                    continue  # its sessions' workers say so
                if volume.kind != "posix":
                    continue  # it records by itself
                duty = RecorderDuty(name, volume.brick(), self._site.worker_timeout,
                                    self._recorder_argv(name, self._home, self._site))
                if kept is None:
                    kept = self.recorders[name] = Kept(duty, self._pauses)
                else:
                    kept.duty = duty
                    kept.replace()
            kept.want(True, anew)

    # waiting

    def _wait(self) -> None:
        """Until one of the processes has ended, a signal has come, or it is time to look again."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        for kept in self._all():
            if kept.running is not None and kept.running.fd >= 0:
                poller.register(kept.running.fd, select.POLLIN)
        if any(fd == self._wake_fd for fd, _ in poller.poll(TICK * 1000)):
            os.read(self._wake_fd, 4096)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP end the monitor; they and a child's end wake `_wait`. Main thread only."""
        self._wake_fd, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._asked_to_end) for number in numbers}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake_fd)
            os.close(writer)

    def _asked_to_end(self, number: int, frame: FrameType | None) -> None:
        self._ended = True
