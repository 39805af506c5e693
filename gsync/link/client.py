"""The master's side of the agent: its methods, typed, over one channel; requests may be pipelined.

One thread reads the answers, another keeps an idle agent from giving up on us. Errors: the link broke → Transient (with
the agent's last words); the agent refused, or the slave as a whole cannot continue (full, read-only) → SlaveError; a
younger worker has taken over the slave → Fenced. Any thread may call.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from gsync.base import rpc
from gsync.base.errors import GsyncError, SlaveError, Transient
from gsync.base.fsid import whereabouts
from gsync.base.model import Gfid, Name
from gsync.link.link import Channel, Link, Slave
from gsync.link.protocol import (
    Busy,
    CommitAnswer,
    Fenced,
    FillAnswer,
    FillRow,
    Hello,
    LandedRow,
    MetaRow,
    RemoveAnswer,
    RemoveRow,
)
from gsync.link.survey import Survey

_PAGE = 5000
_FATES: dict[str, type[GsyncError]] = {
    "refused": SlaveError, "transient": Transient, "busy": Busy, "fenced": Fenced, "io": SlaveError}
_PATIENCE = 10  # seconds that the agent has to say goodbye
_UNTIL_BEAT = 20  # seconds of silence allowed to an agent that does not beat yet: it is still starting


def error_of(slave: Slave, error: dict[str, Any]) -> GsyncError:
    """The exception for an error that one of our programs at the slave has sent."""
    return _FATES.get(error["type"], GsyncError)(f"slave {slave}: {error['message']}")


def _text(name: bytes) -> str:
    return name.decode("latin-1")


def _name(row: Sequence[str]) -> Name:
    return bytes.fromhex(row[0]), row[1].encode("latin-1")


class _Heard:
    """The agent's output, with the time (monotonic, seconds) at which data last arrived."""

    def __init__(self, channel: Channel) -> None:
        self._stdout = channel.stdout
        self.at = time.monotonic()

    def read(self, size: int) -> bytes:
        data: bytes = self._stdout.read1(size)  # type: ignore[attr-defined]
        self.at = time.monotonic()
        return data


class SlaveClient:
    """The agent for the slave tree `link.slave.path`. The agent exits after `timeout` seconds without a word from us.

    silence: seconds without a sign of life after which the agent counts as lost. The client then drops the link, and
    every waiting call gets Transient. hello tells the agent to beat four times as often; until its first beat, while it
    starts, the agent has longer. master: the path of the tree to be replicated. A slave inside it, or that contains it,
    is refused. stream: where several workers each bring a part of one master, the part of this one
    (protocol.stream_of). ticket: what this connection's receivers and rsync servers show at the slave.
    """

    def __init__(self, link: Link, timeout: float = 120, silence: float | None = None, master: str | None = None,
                 stream: str = "") -> None:
        self._link = link
        self._master = ("", []) if master is None else whereabouts(os.fsencode(master))
        self._timeout = timeout
        self._silence = silence
        self.ticket = secrets.token_hex(16) + (f"-{stream}" if stream else "")
        self._channel = link.agent([link.slave.path])
        self._heard = _Heard(self._channel)
        self._lock = threading.Lock()  # writing and the order of `_waiting` belong together
        self._waiting: dict[int, Future[Any]] = {}
        self._last = 0
        self._error: GsyncError | None = None
        self._broken: Transient | None = None
        self._beats = False
        self._pinged = time.monotonic()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._read, name="answers of the agent"),
                         threading.Thread(target=self._watch, name="watch of the link")]
        for thread in self._threads:
            thread.start()

    # calls

    def submit(self, method: str, **params: Any) -> Future[Any]:
        """Send a request; the future gets the answer. The agent serves in order."""
        future: Future[Any] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._last += 1
            self._waiting[self._last] = future
            frame = rpc.encode({"id": self._last, "method": method, "params": params})
            with contextlib.suppress(OSError):  # the reader finds the cause and tells the future
                self._channel.write(frame)
        self._pinged = time.monotonic()
        return future

    def call(self, method: str, **params: Any) -> Any:
        return self.submit(method, **params).result()

    def _read(self) -> None:
        error: GsyncError | None = None
        known = False
        try:
            while (answer := rpc.read_frame(self._heard)) is not None:  # type: ignore[arg-type]
                known = True
                if answer == rpc.BEAT:
                    self._beats = True
                    continue
                future = self._waiting.pop(answer["id"])
                if "error" in answer:
                    future.set_exception(error_of(self._link.slave, answer["error"]))
                else:
                    future.set_result(answer["result"])
        except (rpc.BadFrame, KeyError, TypeError) as exc:
            if not known or not isinstance(exc, rpc.TornFrame):  # otherwise the agent exited in the middle of an answer
                error = SlaveError(f"slave {self._link.slave}: not the agent's answer: {exc}; does a shell there print "
                                   f"something at the start?")
                self._channel.kill()
        except (OSError, ValueError) as exc:
            error = Transient(f"slave {self._link.slave}: {exc}")
        self._ended.set()
        error = self._broken or error or self._link.error(self._channel)
        with self._lock:
            self._error = error
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(error)

    def _watch(self) -> None:
        """Keep an idle agent from giving up on us, and give up on an agent that stays silent."""
        pause = self._timeout / 3 if self._silence is None else min(self._timeout / 3, self._silence / 4)
        while not self._ended.wait(pause):
            quiet = time.monotonic() - self._heard.at
            if self._silence is not None and quiet > (self._silence if self._beats else
                                                      max(self._silence, _UNTIL_BEAT)):
                self._broken = Transient(f"slave {self._link.slave}: nothing heard from the slave for {quiet:.1f} s")
                self._link.break_off()
                self._channel.kill()
                return
            if time.monotonic() - self._pinged >= self._timeout / 3:
                try:
                    self.submit("ping")
                except GsyncError:
                    return

    def check(self) -> None:
        """Raise the error that ended the connection, if any. Sends nothing."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Say goodbye if the agent can still hear it, and end the agent."""
        try:
            self.submit("bye").result(_PATIENCE)
        except TimeoutError:
            self._link.break_off()
            self._channel.kill()
        except GsyncError:
            self._channel.kill()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def abort(self) -> None:
        """Drop the connection from another thread: waiting calls get Transient."""
        self._channel.kill()

    # methods

    def look(self, volume: str, adopt: bool = False, make: bool = False) -> bool:
        """Before hello: whether the slave already belongs to this volume. SlaveError if hello will refuse it."""
        return bool(self.call("look", volume=volume, adopt=adopt, make=make, master=self._master))

    def survey(self, volume: str, adopt: bool = False) -> Survey:
        """Before hello, changing nothing: how suitable the directory is as this volume's slave."""
        return Survey.from_json(self.call("survey", volume=volume, adopt=adopt, master=self._master))

    def hello(self, volume: str, volume_name: str, session: str, epoch: int, adopt: bool = False,
              delete_retention: int = 0, make: bool = False, leave: Sequence[str] = ()) -> Hello:
        """Open the slave tree; with `make`, create it if only its last folder is missing. leave: "xattrs", "acls" that
        the slave keeps as its own. Only look and survey may come before it. SlaveError tells why the agent refuses."""
        answer = self.call(
            "hello", protocol=rpc.PROTOCOL, volume=volume, volume_name=volume_name, session=session, epoch=epoch,
            adopt=adopt, delete_retention=delete_retention, make=make, leave=list(leave), timeout=self._timeout,
            master=self._master,
            ticket=self.ticket, beat=None if self._silence is None else self._silence / 4)
        self._beats = True  # the agent beats from now on; while it is answering it need not
        return Hello.from_json(answer)

    def _leftovers(self, kind: str) -> Iterator[list[Any]]:
        after: Any = None
        while True:
            answer = self.call("leftovers", kind=kind, after=after, limit=_PAGE)
            if answer["rows"]:
                yield answer["rows"]
            after = answer["next"]
            if after is None:
                return

    def leftover_names(self) -> Iterator[list[Name]]:
        """Pages of the names that batches without a commit may have touched."""
        for rows in self._leftovers("names"):
            yield [_name(row) for row in rows]

    def leftover_dirs(self) -> Iterator[list[Gfid]]:
        """Pages of the directories whose content may be incomplete."""
        for rows in self._leftovers("dirs"):
            yield [bytes.fromhex(g) for g in rows]

    def leftover_gfids(self) -> Iterator[list[Gfid]]:
        """Pages of the inodes that wait in limbo/old."""
        for rows in self._leftovers("gfids"):
            yield [bytes.fromhex(g) for g in rows]

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring names to the inodes that the rows give; a code for each row."""
        return FillAnswer.from_json(self.call("fill", rows=[row.to_json() for row in rows]))

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer:
        """Take names away; with keep_last, not an inode's last name."""
        return RemoveAnswer.from_json(self.call("remove", rows=[row.to_json() for row in rows], keep_last=keep_last))

    def weigh(self, names: Sequence[Name], limit: int) -> int:
        """How many entries these names would remove, everything below directories included; counted up to limit + 1."""
        return int(self.call("weigh", names=[[p.hex(), _text(b)] for p, b in names], limit=limit))

    def meta(self, rows: Sequence[MetaRow]) -> list[int]:
        """Set attributes; return 0, an errno, or -1 (the slave has no such inode) for each row."""
        answers: list[int] = self.call("meta", rows=[row.to_json() for row in rows])["answers"]
        return answers

    def known(self, gfids: Sequence[Gfid]) -> list[bool]:
        """For each inode, whether the slave has it."""
        return [bool(there) for there in self.call("known", gfids=[g.hex() for g in gfids])]

    def digest(self, gfids: Sequence[Gfid]) -> list[tuple[int, str] | None]:
        """Size and BLAKE2b (hex) of each file's content at the slave; None if it cannot be read."""
        return [(size, digest) if err == 0 else None
                for err, size, digest in self.call("digest", gfids=[g.hex() for g in gfids])]

    def expose(self, gfids: Sequence[Gfid]) -> list[int]:
        """Give each file the name limbo/link/<gfid>, for rsync: 0, an errno, or -1 (the slave has no such inode)."""
        answers: list[int] = self.call("expose", gfids=[g.hex() for g in gfids])["answers"]
        return answers

    def unexpose(self, gfids: Sequence[Gfid]) -> None:
        """Remove those names again."""
        self.call("unexpose", gfids=[g.hex() for g in gfids])

    def landed(self, rows: Sequence[LandedRow]) -> list[int]:
        """Finish new files that rsync has put into limbo/new: check the size, set attributes; 0 or an errno for
        each."""
        answers: list[int] = self.call("landed", rows=[row.to_json() for row in rows])["answers"]
        return answers

    def complete(self, dirs: Sequence[Gfid]) -> None:
        """Note that the content of these directories is complete at the slave."""
        self.call("complete", dirs=[g.hex() for g in dirs])

    def commit(self, stime: int | None, entry_stime: int | None, epoch: int, clear: bool,
               mark: str | None = None, walked: bool = False) -> CommitAnswer:
        """Make everything durable, then set the stime (None: not yet); `clear` empties limbo/old as far as it may.
        mark: a text that the next hello returns with this stime. walked: up to the stime, the slave has everything of
        all streams."""
        return CommitAnswer(**self.call("commit", stime=stime, entry_stime=entry_stime, epoch=epoch,
                                         clear=clear, mark=mark, walked=walked))

    def forget_stime(self) -> None:
        """Make the next worker compare the whole tree."""
        self.call("forget_stime")

    def ping(self) -> None:
        self.call("ping")

    def list(self, directory: Gfid, after: bytes | None = None, limit: int = _PAGE
             ) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]:
        """A page of the names in a slave directory with their gfids (None: a foreign inode), and the name to continue
        after (None: this was the last page)."""
        answer = self.call("list", dir=directory.hex(), after=None if after is None else _text(after), limit=limit)
        following = answer["next"]
        return ([(name.encode("latin-1"), gfid and bytes.fromhex(gfid)) for name, gfid in answer["names"]],
                None if following is None else following.encode("latin-1"))
