"""The agent: the methods that a worker can call on one slave, of whatever kind (target).

The agent answers only the methods in the table below (rows: gsync/link/protocol.py). It exits after an error that
leaves its index in doubt; the next agent recovers. Not here: the pipes to the worker (serve). Standard library only,
Python 3.9.
"""

from __future__ import annotations

import errno
import os
import platform
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gsync
from gsync.base import rpc
from gsync.base.errors import SlaveError, Transient
from gsync.base.fate import SLAVE
from gsync.base.model import Gfid, Name
from gsync.link.protocol import (
    ERROR,
    Busy,
    Fenced,
    FillRow,
    Hello,
    LandedRow,
    MetaRow,
    RemoveRow,
    RowProblem,
    gfid_of_json,
    name_of_json,
    text_of,
)
from gsync.slave.target import Asked, Operations, Target

_LIMIT = 10_000            # most rows in one answer
FIRST_TIMEOUT = 120.0      # seconds to wait for the hello

Row = TypeVar("Row")
Params = dict[str, Any]


class Agent:
    """One slave and the methods on it. beat: called with the pause (seconds) that the worker asks for between signs of
    life."""

    def __init__(self, target: Target, beat: Callable[[float], None] = lambda seconds: None) -> None:
        self._target = target
        self._beat = beat
        self.timeout = FIRST_TIMEOUT
        self.ends = False
        self._swept = True

    def close(self) -> None:
        self._target.close()

    def answer(self, request: Any) -> dict[str, Any]:
        """Perform a request; return the frame to send back."""
        try:
            method = METHODS.get(request["method"])
            if method is None:
                raise SlaveError(f"no such method: {request['method']!r}")
            if self._target.operations is None and method not in (Agent.hello, Agent.look, Agent.survey):
                raise SlaveError("the first request must be hello")
            self.check()
            return {"id": request["id"], "result": method(self, request["params"])}
        except Exception as exc:  # noqa: BLE001 - whatever it is, the worker must be told
            return {"id": request.get("id"), "error": self._error(exc)}

    def check(self) -> None:
        """Raise Fenced once a younger connection has taken over the slave (invariant 9)."""
        self._target.check()

    def _error(self, exc: Exception) -> dict[str, Any]:
        """The form in which an exception is sent. The agent exits after those that leave the index in doubt."""
        kind, number = "bug", None
        message = str(exc)
        if isinstance(exc, SlaveError):
            kind = "refused"
        elif isinstance(exc, Fenced):
            kind = "fenced"
            self.ends = not self._target.valid
        elif isinstance(exc, Transient):
            kind = "busy" if isinstance(exc, Busy) else "transient"
            self.ends = kind == "transient"
        elif isinstance(exc, OSError):
            kind, number = "io", exc.errno
            message = f"{exc.strerror}: {os.fsdecode(exc.filename)}" if exc.filename else str(exc.strerror)
            self.ends = exc.errno not in SLAVE.full
        elif isinstance(exc, sqlite3.Error):
            kind, number = _sqlite_fate(str(exc))
            message = f"index of the slave: {exc}"
            self.ends = True
        else:
            message = f"{type(exc).__name__}: {exc}"
            self.ends = True
        return {"type": kind, "message": message, "errno": number}

    @property
    def _operations(self) -> Operations:
        assert self._target.operations is not None
        return self._target.operations

    def tidy(self, goes_on: Callable[[], bool]) -> bool:
        """Delete what commits have let go, while goes_on; whether there may be more."""
        if not self._swept:
            self._swept = self._target.sweep(goes_on)
        return not self._swept

    # methods

    def look(self, params: Params) -> bool:
        """Before hello, changing nothing: whether the slave already belongs to this volume."""
        return self._target.look(str(params["volume"]), bool(params["adopt"]), bool(params["make"]),
                                 params.get("master", ("", ())))

    def survey(self, params: Params) -> dict[str, Any]:
        """Before hello, changing nothing: how suitable the place is as this volume's slave."""
        return self._target.survey(str(params["volume"]), bool(params["adopt"]),
                                   params.get("master", ("", ()))).to_json()

    def hello(self, params: Params) -> dict[str, Any]:
        if self._target.taken:
            raise SlaveError("hello comes once")
        if params["protocol"] != rpc.PROTOCOL:
            raise SlaveError(f"the agent speaks protocol {rpc.PROTOCOL}, the worker {params['protocol']}: use the same "
                             f"gsync at both ends")
        if params.get("beat") is not None:
            self._beat(max(0.01, float(params["beat"])))
        boot_id, epoch = _boot_id(), int(params["epoch"])
        found = self._target.open(Asked(
            str(params["volume"]), str(params["volume_name"]), str(params["session"]), epoch,
            str(params.get("ticket", "")), bool(params["adopt"]), bool(params.get("make")),
            int(params["delete_retention"]), frozenset(params.get("leave", ())), params.get("master", ("", ())),
            boot_id))
        self._swept = False
        self.timeout = float(params["timeout"])
        return Hello(rpc.PROTOCOL, gsync.__version__, os.getpid(), boot_id, found.stime, found.entry_stime, epoch,
                     found.unclean, found.empty, found.free, found.caps, platform.python_version(), os.geteuid(),
                     found.mark, found.volume_id).to_json()

    def fill(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(FillRow.from_json, params["rows"])
        answer = self._operations.fill(rows)
        codes = [ERROR] * len(params["rows"])
        for place, code in zip(places, answer.answers):
            codes[place] = code
        return answer._replace(answers=codes, errors=_merged(problems, answer.errors, places)).to_json()

    def remove(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(RemoveRow.from_json, params["rows"])
        answer = self._operations.remove(rows, bool(params.get("keep_last")))
        return answer._replace(errors=_merged(problems, answer.errors, places)).to_json()

    def meta(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(MetaRow.from_json, params["rows"])
        return _numbers(len(params["rows"]), places, self._operations.meta(rows), problems)

    def landed(self, params: Params) -> dict[str, Any]:
        rows, places, problems = _decoded(LandedRow.from_json, params["rows"])
        return _numbers(len(params["rows"]), places, self._operations.landed(rows), problems)

    def list_names(self, params: Params) -> dict[str, Any]:
        after = params["after"]
        names, following = self._operations.names_in(gfid_of_json(params["dir"]),
                                                None if after is None else after.encode("latin-1"), _limit(params))
        return {"names": [[text_of(name), None if gfid is None else gfid.hex()] for name, gfid in names],
                "next": None if following is None else text_of(following)}

    def weigh(self, params: Params) -> int:
        names = [name_of_json(pargfid, bname) for pargfid, bname in params["names"]]
        return self._operations.weigh(names, int(params["limit"]))

    def known(self, params: Params) -> list[int]:
        return self._operations.known(_gfids(params["gfids"]))

    def digest(self, params: Params) -> list[tuple[int, int, str]]:
        return self._operations.digest(_gfids(params["gfids"]))

    def expose(self, params: Params) -> dict[str, Any]:
        return {"answers": self._operations.expose(_gfids(params["gfids"]))}

    def unexpose(self, params: Params) -> dict[str, Any]:
        self._operations.unexpose(_gfids(params["gfids"]))
        return {}

    def complete(self, params: Params) -> dict[str, Any]:
        self._operations.complete(_gfids(params["dirs"]))
        return {}

    def leftovers(self, params: Params) -> dict[str, Any]:
        kind, after, limit = params["kind"], params["after"], _limit(params)
        if kind == "names":
            start: Name | None = None if after is None else (bytes.fromhex(after[0]), after[1].encode("latin-1"))
            names = self._operations.leftover_names(start, limit)
            rows: list[Any] = [[pargfid.hex(), text_of(bname)] for pargfid, bname in names]
        elif kind in ("dirs", "gfids"):
            page = self._operations.leftover_dirs if kind == "dirs" else self._operations.leftover_gfids
            rows = [gfid.hex() for gfid in page(b"" if after is None else gfid_of_json(after), limit)]
        else:
            raise SlaveError(f"no such kind of leftovers: {kind!r}")
        return {"rows": rows, "next": rows[-1] if len(rows) == limit else None}

    def commit(self, params: Params) -> dict[str, Any]:
        mark = params.get("mark")
        answer = self._operations.commit(params["stime"], params["entry_stime"], int(params["epoch"]),
                                    bool(params["clear"]), None if mark is None else str(mark),
                                    bool(params.get("walked")))
        self._swept = False
        return answer.to_json()

    def forget_stime(self, params: Params) -> dict[str, Any]:
        """Make the next worker compare the whole tree, since nothing is known to be in sync any more."""
        self._target.forget_stime()
        return {}

    def ping(self, params: Params) -> dict[str, Any]:
        return {}

    def bye(self, params: Params) -> dict[str, Any]:
        self._target.goodbye()
        self.ends = True
        return {}


METHODS: dict[str, Callable[[Agent, Params], Any]] = {
    "look": Agent.look, "survey": Agent.survey, "hello": Agent.hello, "leftovers": Agent.leftovers, "fill": Agent.fill,
    "remove": Agent.remove, "weigh": Agent.weigh,
    "meta": Agent.meta, "list": Agent.list_names, "known": Agent.known, "digest": Agent.digest, "expose": Agent.expose,
    "unexpose": Agent.unexpose, "landed": Agent.landed, "complete": Agent.complete, "commit": Agent.commit,
    "forget_stime": Agent.forget_stime, "ping": Agent.ping, "bye": Agent.bye,
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


def _decoded(decode: Callable[[Any], Row], rows: Sequence[Any]) -> tuple[list[Row], list[int], list[RowProblem]]:
    """The valid rows, their positions among all rows, and the problems of the others."""
    good: list[Row] = []
    places: list[int] = []
    problems: list[RowProblem] = []
    for i, row in enumerate(rows):
        try:
            good.append(decode(row))
            places.append(i)
        except (ValueError, TypeError, AttributeError, IndexError) as exc:
            problems.append(RowProblem(i, errno.EINVAL, f"refused: {exc}"))
    return good, places, problems


def _merged(problems: list[RowProblem], more: Sequence[RowProblem], places: Sequence[int]) -> list[RowProblem]:
    return problems + [problem._replace(row=places[problem.row]) for problem in more]


def _numbers(count: int, places: Sequence[int], answers: Sequence[int], problems: Sequence[RowProblem]) -> Params:
    numbers = [errno.EINVAL] * count
    for place, answer in zip(places, answers):
        numbers[place] = answer
    return {"answers": numbers}
