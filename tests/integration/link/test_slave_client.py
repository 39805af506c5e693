"""The master's side of the agent: answers, errors and the end of the link."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, GsyncError, SlaveError, Transient
from gsync.base.model import ROOT_GFID
from gsync.link.client import SlaveClient
from gsync.link.link import Channel, Slave
from gsync.link.local import LocalLink
from gsync.link.protocol import FillRow, RemoveRow
from lab.engines import local
from lab.sshd import below

VOLUME = "00000000-0000-0000-0000-00000000c0de"
DIRS = [bytes([i]) * 16 for i in range(1, 51)]


@pytest.fixture
def client(tmp_path: Path) -> SlaveClient:
    client = SlaveClient(local(tmp_path / "slave"))
    client.hello(VOLUME, "v", "s", 1)
    return client


def rows() -> list[FillRow]:
    return [FillRow(ROOT_GFID, b"d\xff%d" % i, gfid, 0o40755, 1, 2, os.geteuid(), os.getegid(), 0, 0, 0)
            for i, gfid in enumerate(DIRS)]


def test_all_methods_speak_with_a_real_agent(client: SlaveClient, tmp_path: Path) -> None:
    assert set(client.fill(rows()).answers) == {"made"}
    client.complete(DIRS)
    assert set(client.fill(rows()).answers) == {"ok"}
    assert client.known([*DIRS, bytes(16)]) == [True] * 50 + [False]
    names, after = client.list(ROOT_GFID, limit=30)
    more, end = client.list(ROOT_GFID, after)
    assert end is None
    assert names + more == sorted((row.bname, row.gfid) for row in rows())
    assert sorted(name for page in client.leftover_names() for name in page) == sorted(
        (ROOT_GFID, row.bname) for row in rows())
    assert client.meta([]) == []
    assert client.digest([bytes(15) + b"\x09"]) == [None]
    assert client.remove([RemoveRow(ROOT_GFID, rows()[0].bname, 2)]).displaced == [DIRS[0]]
    assert [gfid for page in client.leftover_gfids() for gfid in page] == [DIRS[0]]
    assert client.commit(5, 5, 1, clear=True).stime == 5
    assert list(client.leftover_dirs()) == []
    client.ping()
    client.close()
    assert len(os.listdir(tmp_path / "slave")) == 50


def test_requests_may_be_pipelined_and_answers_find_their_requests(client: SlaveClient) -> None:
    futures = [client.submit("known", gfids=[DIRS[0].hex()] * i) for i in range(200)]
    assert [len(f.result()) for f in futures] == list(range(200))
    client.close()


def test_a_refusal_says_which_slave_and_why(tmp_path: Path) -> None:
    (tmp_path / "slave").mkdir()
    (tmp_path / "slave" / "file").touch()
    client = SlaveClient(local(tmp_path / "slave"))
    with pytest.raises(SlaveError, match=r"slave .*/slave: it is neither empty nor a gsync slave"):
        client.hello(VOLUME, "v", "s", 1)
    client.close()


def test_an_older_epoch_makes_faulty(client: SlaveClient) -> None:
    client.commit(None, None, 8, clear=False)
    with pytest.raises(Faulty, match="epoch"):
        client.commit(None, None, 7, clear=False)
    client.close()


def test_an_agent_that_is_killed_gives_transient_to_all_who_wait(client: SlaveClient, tmp_path: Path) -> None:
    (agent,) = below(os.getpid(), os.fsencode(tmp_path / "slave"))
    os.kill(agent, signal.SIGSTOP)
    futures = [client.submit("ping") for _ in range(3)]
    os.kill(agent, signal.SIGKILL)
    for future in futures:
        with pytest.raises(Transient, match="killed by signal 9"):
            future.result()
    with pytest.raises(Transient):
        client.call("ping")
    client.close()


class Instead(LocalLink):
    """A link on which something else answers."""

    def __init__(self, program: str) -> None:
        super().__init__(Slave(b"/nowhere"))
        self.program = program

    def agent(self, argv: Sequence[bytes]) -> Channel:
        return self.spawn([sys.executable.encode(), b"-c", self.program.encode()])


@pytest.mark.parametrize(("program", "fate", "words"), [
    ("print('Welcome to this machine, dear user')", SlaveError, "Welcome"),
    ("import sys; sys.exit('no space for python')", Transient, "no space for python"),
    ("import sys, time; sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.1)", SlaveError, "stream ended"),
    (r"import sys; sys.stdout.buffer.write(b'\0\0\0\x02{}'); sys.stdout.flush(); sys.stdin.read()", SlaveError, "id"),
])
def test_what_is_no_agent_is_said(program: str, fate: type[GsyncError], words: str) -> None:
    client = SlaveClient(Instead(program))
    with pytest.raises(fate, match=words):
        client.hello(VOLUME, "v", "s", 1)
    client.close()


def test_an_idle_client_keeps_the_agent_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thrice = threading.Semaphore(0)
    submit = SlaveClient.submit

    def counted(self: SlaveClient, method: str, **params: object) -> object:
        if method == "ping":
            thrice.release()
        return submit(self, method, **params)

    monkeypatch.setattr(SlaveClient, "submit", counted)
    client = SlaveClient(local(tmp_path / "slave"), timeout=0.03)
    for _ in range(3):
        thrice.acquire()
    client.close()
