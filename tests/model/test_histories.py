"""Random histories on the real code: users, batch cuts, deaths of recorder, worker and agent at every durable step.

GSYNC_HISTORIES says how many (scripts/soak runs many more than the default). At each commit invariant 1 is checked,
at the end of each history that the trees are equal and nothing is left behind.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gsync.base import fsid
from gsync.engine.parts import Limits
from gsync.engine.states import Order
from gsync.recorder import detectors
from lab.model.world import Killed, World

HISTORIES = int(os.environ.get("GSYNC_HISTORIES", "150"))

# Few names, so that histories cross themselves.
files = st.sampled_from(["m/a", "m/b", "m/c", "m/d/a", "m/d/b", "m/e/a", "m/e/b", "m/d/e/a", "m/e/d/b", "o/a", "o/b"])
dirs = st.sampled_from(["m/d", "m/e", "m/d/e", "m/e/d", "m/a", "m/b", "o/d", "m/d/e/d"])
places = st.one_of(files, dirs)

user = st.one_of(
    st.tuples(st.just("mk"), files, st.sampled_from(["1", "22", "333"])),
    st.tuples(st.just("mkdir"), dirs),
    st.tuples(st.just("mv"), places, places),
    st.tuples(st.just("mv"), places, places),
    st.tuples(st.just("rm"), places),
    st.tuples(st.just("ln"), files, files),
    st.tuples(st.just("symlink"), st.sampled_from(["x", "../y"]), files),
    st.tuples(st.just("chmod"), places, st.sampled_from([0o700, 0o755, 0o750])),
)
# What is there before most histories begin: without it most of what they try to do has nothing to do it to.
TREE = ("user", [("mkdir", "m/d"), ("mkdir", "m/e"), ("mk", "m/a", "1"), ("mk", "m/d/a", "22"), ("ln", "m/a", "m/e/b"),
                 ("mkdir", "m/d/e"), ("mk", "m/d/e/a", "333"), ("mk", "o/a", "1")])
several = st.lists(user, min_size=1, max_size=4)
action = st.one_of(
    st.tuples(st.just("user"), several),
    st.tuples(st.just("user"), several),
    st.tuples(st.just("user"), several),
    st.tuples(st.just("user"), several),
    st.tuples(st.just("cut")),
    st.tuples(st.just("cut")),
    st.tuples(st.just("poll")),
    st.tuples(st.just("cycle")),
    st.tuples(st.just("cycle")),
    st.tuples(st.just("cycle while"), several, st.integers(0, 12)),     # the user goes on at the nth call of the agent
    st.tuples(st.just("cycle dies"), st.integers(0, 40)),              # ... at the nth durable step
    st.tuples(st.just("recorder dies")),
    st.tuples(st.just("recorder up")),
    st.tuples(st.just("recorder dies at"), st.integers(0, 8)),
    st.tuples(st.just("worker dies")),
    st.tuples(st.just("worker stops")),
    st.tuples(st.just("cycle stops"), st.integers(0, 20)),             # ... at the nth call of the agent
    st.tuples(st.just("other node")),
    st.tuples(st.just("history lost")),
    st.tuples(st.just("reset"), st.integers(3, 12), st.booleans()),    # a walk that compares all is stopped; a gap
)
beginning: st.SearchStrategy[list[tuple[object, ...]]] = st.sampled_from(
    [[TREE], [TREE, ("cut",), ("cycle",)], [TREE, ("cut",), ("cycle",), ("cut",), ("cycle",)], []])


def unseen(w: World, op: tuple[object, ...]) -> bool:
    """Whether this writes through a hard link outside the tree, which inotify does not see: no rule lifts this."""
    method, path = op[:2]
    at = w.path(str(path))
    return method in ("mk", "chmod") and str(path).startswith("o/") and at.is_file() and at.lstat().st_nlink > 1


def do(w: World, op: tuple[object, ...]) -> None:
    method, *args = op
    if unseen(w, op):
        return
    try:
        getattr(w, str(method))(*args)
    except OSError:
        pass  # there is no such thing to do it to
    except ValueError:
        pass


def die_at(w: World, prefixes: tuple[str, ...], nth: int) -> None:
    left = [nth]

    def step(name: str) -> None:
        if name.startswith(prefixes):
            if left[0] == 0:
                raise Killed(name)
            left[0] -= 1

    w.step = step


def act(w: World, one: tuple[object, ...]) -> None:
    what, *args = one
    if what == "user":
        for op in args[0]:  # type: ignore[attr-defined]
            do(w, op)
    elif what == "cut":
        w.poll()
        w.cut()
    elif what == "poll":
        w.poll()
    elif what == "cycle":
        w.cycle()
    elif what == "cycle while":
        left = [int(str(args[1]))]

        def between(method: str) -> None:
            if left[0] == 0:
                for op in args[0]:  # type: ignore[attr-defined]
                    do(w, op)
            left[0] -= 1

        w.between = between
        w.cycle()
    elif what == "cycle dies":
        die_at(w, ("agent", "receiver"), int(str(args[0])))
        w.cycle()
    elif what == "recorder dies":
        w.recorder_dies()
    elif what == "recorder up":
        if w.recorder is None:
            w.recorder_up()
    elif what == "recorder dies at":
        die_at(w, ("recorder",), int(str(args[0])))
        if w.recorder is None:
            w.recorder_up()
        w.poll()
        w.cut()
    elif what == "worker dies":
        w.worker_dies()
    elif what == "worker stops":
        w.worker_stops()
    elif what == "cycle stops":
        left = [int(str(args[0]))]

        def between(method: str) -> None:
            if left[0] == 0:
                w.order = Order.STOP
            left[0] -= 1

        w.between = between
        w.cycle()
        w.order = Order.RUN
    elif what == "other node":
        w.takes_over(1 - w.node)
    elif what == "history lost":
        w.lose_history()
    elif what == "reset":
        for one_before in ("cut", "cycle", "cut", "cycle"):
            act(w, (one_before,))
        w.damage()
        w.forget_stime()
        act(w, ("cycle stops", args[0]))
        if args[1]:
            w.recorder_dies()
            w.recorder_up()


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
          phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(beginning, st.lists(action, min_size=3, max_size=25), st.booleans())
def test_every_history_converges(begin: list[tuple[object, ...]], history: list[tuple[object, ...]], interim: bool
                                 ) -> None:
    converges(begin + history, interim)


@settings(max_examples=HISTORIES // 4, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(beginning, st.lists(action, min_size=3, max_size=25))
def test_every_history_converges_where_the_slaves_inodes_are_known_by_name_alone(
        begin: list[tuple[object, ...]], history: list[tuple[object, ...]]) -> None:
    """A slave on FAT and its kind."""
    with mock.patch.object(fsid, "_makes_up_numbers", lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/s")):
        converges(begin + history)


def converges(history: list[tuple[object, ...]], interim: bool = False) -> None:
    """interim: what a walk has done is committed each time that it can be."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as base:
        w = World(Path(base) / "w", detectors.inotify)
        w.limits = Limits(interim_commit=0.0) if interim else Limits()
        try:
            for one in history:
                try:
                    act(w, one)
                except Killed as exc:
                    if str(exc).startswith("recorder"):
                        w.recorder_dies()
                w.between = w.step = lambda name: None
            w.quiet()
            w.check_equal()
        finally:
            w.close()
