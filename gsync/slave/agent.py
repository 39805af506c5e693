"""gsync's program on the slave host: `agent.pyz ROOT` serves one worker, `agent.pyz --receive ROOT` takes file data.

The agent answers requests on stdin one by one (frames: gsync/rpc.py, rows: gsync/slave/protocol.py), and only the
methods in the table below. It ends when its stdin does, after `timeout` seconds of silence, and after an error that
leaves its index in doubt: the next one recovers. While nothing is asked it deletes what a commit has let go.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import select
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gsync
from gsync import rpc
from gsync.errors import SLAVE_WIDE, SlaveError, Transient, UsageError
from gsync.model import Gfid, Name
from gsync.slave.apply import Apply
from gsync.slave.identity import Taken, look, probe, receivers_gone, take
from gsync.slave.limbo import Step
from gsync.slave.protocol import (
    ERROR,
    Fenced,
    FillRow,
    Hello,
    LandedRow,
    MetaRow,
    Problem,
    RemoveRow,
    gfid_of_json,
    name_of_json,
    text_of,
)
from gsync.slave.recover import recover
from gsync.slave.tree import SlaveTree

_LIMIT = 10_000            # most rows in one answer
_FIRST_TIMEOUT = 120.0     # seconds for the hello to come
_SWEEP_CHECK = 64          # deletions between two looks at stdin

Row = TypeVar("Row")
Params = dict[str, Any]


class Silence(Exception):
    """The worker has said nothing for too long: the connection is dead."""


class _Stdin:
    """stdin with a limit for silence; read() is what rpc.read_frame needs."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = b""
        self.timeout = _FIRST_TIMEOUT

    def waiting(self, seconds: float = 0) -> bool:
        """Whether there is something to read (the end of the stream too)."""
        return bool(self._data) or bool(select.select([self._fd], [], [], seconds)[0])

    def read(self, size: int) -> bytes:
        if not self._data:
            if not self.waiting(self.timeout):
                raise Silence
            self._data = os.read(self._fd, max(size, 1 << 16))
        data, self._data = self._data[:size], self._data[size:]
        return data


class _Stdout:
    """stdout with a limit for a peer that does not read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)

    def write(self, data: bytes, timeout: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view):]
            except BlockingIOError:
                if not select.select([], [self._fd], [], timeout)[1]:
                    raise Silence from None


class Agent:
    """One slave tree and the methods on it. step: told of everything that a crash may follow."""

    def __init__(self, root: bytes, step: Step = lambda name: None) -> None:
        self._root = root
        self._step = step
        self._taken: Taken | None = None
        self._tree: SlaveTree | None = None
        self._apply: Apply | None = None
        self.timeout = _FIRST_TIMEOUT
        self.ends = False
        self._swept = True

    def close(self) -> None:
        if self._tree is not None:
            self._tree.close()
        if self._taken is not None:
            self._taken.close()

    def answer(self, request: Any) -> dict[str, Any]:
        """Do what is asked; the frame to send back."""
        try:
            method = METHODS.get(request["method"])
            if method is None:
                raise SlaveError(f"no such method: {request['method']!r}")
            if self._apply is None and method not in (Agent.hello, Agent.look):
                raise SlaveError("the first request must be hello")
            return {"id": request["id"], "result": method(self, request["params"])}
        except Exception as exc:  # noqa: BLE001 - whatever it is, the worker has to hear it
            return {"id": request.get("id"), "error": self._error(exc)}

    def _error(self, exc: Exception) -> dict[str, Any]:
        """How an exception travels. After those that leave the index in doubt the agent ends."""
        kind, number = "bug", None
        message = str(exc)
        if isinstance(exc, SlaveError):
            kind = "refused"
        elif isinstance(exc, Fenced):
            kind = "fenced"
        elif isinstance(exc, Transient):
            kind = "transient"
        elif isinstance(exc, OSError):
            kind, number = "io", exc.errno
            message = f"{exc.strerror}: {os.fsdecode(exc.filename)}" if exc.filename else str(exc.strerror)
            self.ends = exc.errno not in SLAVE_WIDE
        elif isinstance(exc, sqlite3.Error):
            kind, number = _sqlite_fate(str(exc))
            message = f"index of the slave: {exc}"
            self.ends = True
        else:
            message = f"{type(exc).__name__}: {exc}"
            self.ends = True
        return {"type": kind, "message": message, "errno": number}

    @property
    def _works(self) -> Apply:
        assert self._apply is not None
        return self._apply

    def tidy(self, goes_on: Callable[[], bool]) -> bool:
        """Delete what commits have let go, while goes_on; whether there may be more."""
        if self._tree is not None and not self._swept:
            self._swept = self._tree.sweep(goes_on)
        return not self._swept

    # methods

    def look(self, params: Params) -> bool:
        """Before hello, and without changing anything: whether the tree is this volume's slave already."""
        return look(self._root, str(params["volume"]), bool(params["adopt"]), bool(params["make"]))

    def hello(self, params: Params) -> dict[str, Any]:
        if self._apply is not None:
            raise SlaveError("hello comes once")
        if params["protocol"] != rpc.PROTOCOL:
            raise SlaveError(f"the agent speaks protocol {rpc.PROTOCOL}, the worker {params['protocol']}: use the same "
                             f"gsync at both ends")
        epoch = int(params["epoch"])
        self._taken = take(self._root, str(params["volume"]), str(params["volume_name"]), bool(params["adopt"]),
                           bool(params.get("make")))
        tree = self._tree = SlaveTree(self._root)
        index = tree.index
        index.check_epoch(epoch)
        receivers_gone(lambda: tree.lock_receivers(alone=True))
        unclean = index.fact("clean") == 0
        tree.caps = probe(tree.state_fd, tree.handles.real)
        apply = Apply(tree, bool(params["adopt"]), int(params["delete_retention"]), self._step)
        recover(tree, apply.limbo, apply.step)
        boot_id = _boot_id()
        with index.transaction():
            for key, value in (("caps", json.dumps(tree.caps._asdict())), ("epoch", epoch), ("clean", 0),
                               ("boot_id", boot_id), ("session", str(params["session"]))):
                index.set_fact(key, value)
        tree.unlock_receivers()
        self._apply = apply
        self._swept = False
        self.timeout = float(params["timeout"])
        free = os.statvfs(tree.root_fd)
        stime, entry_stime = index.fact("stime"), index.fact("entry_stime")
        return Hello(rpc.PROTOCOL, gsync.__version__, os.getpid(), boot_id,
                     stime if isinstance(stime, int) else None, entry_stime if isinstance(entry_stime, int) else None,
                     epoch, unclean, self._taken.empty, free.f_bavail * free.f_frsize, tree.caps,
                     platform.python_version(), os.geteuid()).to_json()

    def fill(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(FillRow.from_json, params["rows"])
        answer = self._works.fill(rows)
        codes = [ERROR] * len(params["rows"])
        for place, code in zip(places, answer.answers):
            codes[place] = code
        return answer._replace(answers=codes, errors=_merged(problems, answer.errors, places)).to_json()

    def remove(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(RemoveRow.from_json, params["rows"])
        answer = self._works.remove(rows)
        return answer._replace(errors=_merged(problems, answer.errors, places)).to_json()

    def meta(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(MetaRow.from_json, params["rows"])
        return _numbers(len(params["rows"]), places, self._works.meta(rows), problems)

    def landed(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(LandedRow.from_json, params["rows"])
        return _numbers(len(params["rows"]), places, self._works.landed(rows), problems)

    def list_names(self, params: Params) -> dict[str, Any]:
        after = params["after"]
        names, following = self._works.names_in(gfid_of_json(params["dir"]),
                                                None if after is None else after.encode("latin-1"), _limit(params))
        return {"names": [[text_of(name), None if gfid is None else gfid.hex()] for name, gfid in names],
                "next": None if following is None else text_of(following)}

    def weigh(self, params: Params) -> int:
        names = [name_of_json(pargfid, bname) for pargfid, bname in params["names"]]
        return self._works.weigh(names, int(params["limit"]))

    def known(self, params: Params) -> list[int]:
        return self._works.known(_gfids(params["gfids"]))

    def digest(self, params: Params) -> list[tuple[int, int, str]]:
        return self._works.digest(_gfids(params["gfids"]))

    def expose(self, params: Params) -> dict[str, Any]:
        return {"answers": self._works.expose(_gfids(params["gfids"]))}

    def unexpose(self, params: Params) -> dict[str, Any]:
        self._works.unexpose(_gfids(params["gfids"]))
        return {}

    def complete(self, params: Params) -> dict[str, Any]:
        self._works.complete(_gfids(params["dirs"]))
        return {}

    def leftovers(self, params: Params) -> dict[str, Any]:
        kind, after, limit = params["kind"], params["after"], _limit(params)
        if kind == "names":
            start: Name | None = None if after is None else (bytes.fromhex(after[0]), after[1].encode("latin-1"))
            names = self._works.leftover_names(start, limit)
            rows: list[Any] = [[pargfid.hex(), text_of(bname)] for pargfid, bname in names]
        elif kind in ("dirs", "gfids"):
            page = self._works.leftover_dirs if kind == "dirs" else self._works.leftover_gfids
            rows = [gfid.hex() for gfid in page(b"" if after is None else gfid_of_json(after), limit)]
        else:
            raise SlaveError(f"no such kind of leftovers: {kind!r}")
        return {"rows": rows, "next": rows[-1] if len(rows) == limit else None}

    def commit(self, params: Params) -> dict[str, Any]:
        answer = self._works.commit(params["stime"], params["entry_stime"], int(params["epoch"]),
                                    bool(params["clear"]))
        self._swept = False
        return answer.to_json()

    def ping(self, params: Params) -> dict[str, Any]:
        return {}

    def bye(self, params: Params) -> dict[str, Any]:
        index = self._works.index
        with index.transaction():
            index.set_fact("clean", 1)
        self.ends = True
        return {}


METHODS: dict[str, Callable[[Agent, Params], Any]] = {
    "look": Agent.look, "hello": Agent.hello, "leftovers": Agent.leftovers, "fill": Agent.fill, "remove": Agent.remove,
    "weigh": Agent.weigh,
    "meta": Agent.meta, "list": Agent.list_names, "known": Agent.known, "digest": Agent.digest, "expose": Agent.expose,
    "unexpose": Agent.unexpose, "landed": Agent.landed, "complete": Agent.complete, "commit": Agent.commit,
    "ping": Agent.ping, "bye": Agent.bye,
}


def _sqlite_fate(text: str) -> tuple[str, int | None]:
    if "locked" in text or "busy" in text:
        return "transient", errno.EBUSY
    if "full" in text:
        return "io", errno.ENOSPC
    return "io", errno.EROFS if "readonly" in text else errno.EIO


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _limit(params: Params) -> int:
    return max(1, min(int(params["limit"]), _LIMIT))


def _gfids(texts: Sequence[Any]) -> list[Gfid]:
    return [gfid_of_json(text) for text in texts]


def _decoded(decode: Callable[[Any], Row], rows: Sequence[Any]) -> tuple[list[Row], list[int], list[Problem]]:
    """The rows that are in order, their places among all, and what is wrong with the others."""
    good: list[Row] = []
    places: list[int] = []
    problems: list[Problem] = []
    for i, row in enumerate(rows):
        try:
            good.append(decode(row))
            places.append(i)
        except (ValueError, TypeError, AttributeError, IndexError) as exc:
            problems.append(Problem(i, errno.EINVAL, f"refused: {exc}"))
    return good, places, problems


def _merged(problems: list[Problem], more: Sequence[Problem], places: Sequence[int]) -> list[Problem]:
    return problems + [problem._replace(row=places[problem.row]) for problem in more]


def _numbers(count: int, places: Sequence[int], answers: Sequence[int], problems: Sequence[Problem]) -> Params:
    numbers = [errno.EINVAL] * count
    for place, answer in zip(places, answers):
        numbers[place] = answer
    return {"answers": numbers}


def serve(agent: Agent, stdin: int, stdout: int) -> None:
    """Answer requests until the stream or the agent ends."""
    source, sink = _Stdin(stdin), _Stdout(stdout)
    while not agent.ends:
        count = 0

        def goes_on() -> bool:
            nonlocal count
            count += 1
            return bool(count % _SWEEP_CHECK) or not source.waiting()

        more = not source.waiting()
        while more:
            more = agent.tidy(goes_on) and not source.waiting()
        source.timeout = agent.timeout
        request = rpc.read_frame(source)  # type: ignore[arg-type]
        if request is None:
            return
        sink.write(rpc.encode(agent.answer(request)), agent.timeout)
    agent.tidy(lambda: True)


def main(argv: Sequence[str] | None = None) -> int:
    """`ROOT` or `--receive ROOT`; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.umask(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the worker ends us by ending our stdin
    if len(arguments) == 2 and arguments[0] == "--receive":
        from gsync.slave import receive

        return receive.main(os.fsencode(arguments[1]))
    if len(arguments) != 1:
        print("usage: agent ROOT | agent --receive ROOT", file=sys.stderr)
        return UsageError.exit_code
    stdout = os.dup(1)
    os.dup2(2, 1)  # nothing but frames may go to the worker, whoever prints
    agent = Agent(os.fsencode(arguments[0]))
    try:
        serve(agent, 0, stdout)
    except Silence:
        print("nothing heard from the worker, ending", file=sys.stderr)
        return Transient.exit_code
    except BrokenPipeError:
        return Transient.exit_code
    finally:
        agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
