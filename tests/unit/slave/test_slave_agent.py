"""The agent as the program it is: a zipapp run by a bare Python over two pipes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from gsync.base import rpc
from gsync.base.model import ROOT_GFID, STATE_DIR, gfid_str
from gsync.link import bundle
from gsync.link.protocol import FillRow, Hello, RemoveRow
from gsync.slave.agent import METHODS
from lab.images import FsImage
from lab.slave_model import DIR, FIFO, LNK

VOLUME = "0b8f8c9e-7d1f-4d4f-a2ea-0c9a4fb0a5b1"
ROOT = ROOT_GFID.hex()


class Refused(Exception):
    """The agent's answer is an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.type, self.errno = error["type"], error["errno"]


class Program:
    """The agent over pipes."""

    def __init__(self, zipapp: Path, root: Path, **more: Any) -> None:
        self.process = subprocess.Popen([sys.executable, "-I", zipapp, root], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self._last = 0

    def send(self, method: str, **params: Any) -> None:
        self._last += 1
        self.stdin.write(rpc.encode({"id": self._last, "method": method, "params": params}))
        self.stdin.flush()

    def receive(self) -> Any:
        answer = rpc.read_frame(cast(BinaryIO, self.stdout))
        assert answer is not None, self.stderr.read().decode()
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    def call(self, method: str, **params: Any) -> Any:
        self.send(method, **params)
        return self.receive()

    def hello(self, **more: Any) -> Hello:
        return Hello.from_json(self.call("hello", **{
            "protocol": rpc.PROTOCOL, "volume": VOLUME, "volume_name": "home", "session": "home_backup", "epoch": 1,
            "adopt": False, "delete_retention": 0, "timeout": 60, **more}))

    def fill(self, *rows: FillRow) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("fill", rows=[row.to_json() for row in rows])
        return answer

    def end(self) -> int:
        """Its exit status, once its stdin has ended."""
        self.stdin.close()
        status = self.process.wait(20)
        self.stdout.close()
        self.stderr.close()
        return status


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    path.write_bytes(bundle.zipapp())
    return path


@pytest.fixture
def agents(zipapp: Path, root: Path) -> Iterator[list[Program]]:
    """Filled by `start`; what still runs at the end is killed."""
    started: list[Program] = []
    yield started
    for agent in started:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()
        for stream in (agent.stdin, agent.stdout, agent.stderr):
            stream.close()


@pytest.fixture
def agent(zipapp: Path, root: Path, agents: list[Program]) -> Program:
    agents.append(Program(zipapp, root))
    return agents[0]


def row(bname: bytes, number: int, mode: int, target: bytes | None = None, nlink: int = 1) -> FillRow:
    return FillRow(ROOT_GFID, bname, number.to_bytes(16, "big"), mode, 5, nlink, os.geteuid(), os.getegid(), 7, 8, 0,
                   target, [])


def test_it_fills_and_commits_and_ends_at_the_end_of_its_stdin(agent: Program, root: Path) -> None:
    hello = agent.hello()
    assert (hello.stime, hello.unclean, hello.empty, hello.epoch) == (None, False, True, 1)
    hostile = b"new\nline\\%s\r" + b"\xff" * 200
    made = agent.fill(row(hostile, 11, DIR), row(b"-link", 12, LNK, b"\xfe target"), row(b"fifo", 13, FIFO))
    assert made["answers"] == ["made", "ok", "ok"]
    assert agent.fill(row(hostile, 11, DIR))["answers"] == ["ok"]
    assert agent.call("list", dir=ROOT, after=None, limit=2)["next"] is not None
    assert agent.call("commit", stime=10, entry_stime=10, epoch=1, clear=True) == {"stime": 10, "removed": 0, "left": 0}
    assert agent.call("bye") == {}
    assert agent.end() == 0
    assert sorted(os.listdir(os.fsencode(root))) == sorted([hostile, b"-link", b"fifo", STATE_DIR])
    assert os.readlink(os.fsencode(root) + b"/-link") == b"\xfe target"
    assert stat.S_IMODE((root / ".gsync").stat().st_mode) == 0o700


def test_requests_may_be_pipelined(agent: Program) -> None:
    agent.hello()
    for number in range(100, 200):
        agent.send("fill", rows=[row(b"%d" % number, number, LNK, b"x").to_json()])
    assert [agent.receive()["answers"] for _ in range(100)] == [["ok"]] * 100


def test_the_next_one_knows_the_stime_and_whether_the_last_one_was_killed(
        zipapp: Path, root: Path, agent: Program, agents: list[Program]) -> None:
    agent.hello()
    agent.call("commit", stime=10, entry_stime=20, epoch=1, clear=True)
    agent.process.send_signal(signal.SIGKILL)
    agent.process.wait()
    second = Program(zipapp, root)
    agents.append(second)
    hello = second.hello()
    assert (hello.stime, hello.entry_stime, hello.unclean, hello.empty) == (10, 20, True, True)
    second.call("bye")
    second.end()
    third = Program(zipapp, root)
    agents.append(third)
    assert not third.hello().unclean


def test_what_a_killed_one_touched_is_told(zipapp: Path, root: Path, agent: Program, agents: list[Program]) -> None:
    agent.hello()
    agent.fill(row(b"dir", 11, DIR))
    agent.fill(row(b"dir", 11, DIR), row(b"old", 12, LNK, b"x"))
    agent.call("remove", rows=[RemoveRow(ROOT_GFID, b"old", 9).to_json()])
    agent.process.kill()
    agent.process.wait()
    second = Program(zipapp, root)
    agents.append(second)
    second.hello()
    names = second.call("leftovers", kind="names", after=None, limit=1)
    more = second.call("leftovers", kind="names", after=names["next"], limit=10)
    assert names["rows"] + more["rows"] == [[ROOT, "dir"], [ROOT, "old"]]
    assert second.call("leftovers", kind="dirs", after=None, limit=10)["rows"] == [(11).to_bytes(16, "big").hex()]
    assert second.call("leftovers", kind="gfids", after=None, limit=10)["rows"] == [(12).to_bytes(16, "big").hex()]


# refusals


def refusal(agent: Program, **more: Any) -> str:
    with pytest.raises(Refused) as caught:
        agent.hello(**more)
    assert caught.value.type == "refused"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_root_is_refused(agent: Program, root: Path) -> None:
    root.rmdir()
    assert "no such directory" in refusal(agent)


def test_a_root_that_is_a_file_is_refused(agent: Program, root: Path) -> None:
    root.rmdir()
    root.write_bytes(b"")
    assert "is not a directory" in refusal(agent)


def test_a_directory_with_something_in_it_is_refused_and_left_as_it_is(agent: Program, root: Path) -> None:
    (root / "precious").write_bytes(b"data")
    assert "neither empty nor a gsync slave" in refusal(agent)
    assert [p.name for p in root.iterdir()] == ["precious"]


def test_lost_and_found_does_not_count(agent: Program, root: Path) -> None:
    (root / "lost+found").mkdir()
    assert agent.hello().empty


def test_another_volumes_slave_is_refused(zipapp: Path, root: Path, agent: Program, agents: list[Program]) -> None:
    agent.hello()
    agent.call("bye")
    agent.end()
    agents.append(Program(zipapp, root))
    assert "slave of another volume, home" in refusal(agents[1], volume="another")


def test_the_agent_of_another_session_is_not_displaced(
        zipapp: Path, root: Path, agent: Program, agents: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    pid = agent.hello().pid
    agents.append(Program(zipapp, root))
    said = refusal(agents[1], session="another", epoch=9)
    assert "session home_backup is using this slave" in said
    assert f"pid {pid} " in said
    assert agent.call("ping") == {}


def test_a_state_folder_that_is_a_symlink_is_refused(agent: Program, root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / ".gsync").symlink_to(elsewhere)
    assert "the name is gsync's own" in refusal(agent)
    assert list(elsewhere.iterdir()) == []


def test_another_protocol_is_refused(agent: Program) -> None:
    assert "protocol" in refusal(agent, protocol=rpc.PROTOCOL + 1)


def test_a_damaged_identity_is_refused(agent: Program, root: Path) -> None:
    (root / ".gsync").mkdir()
    (root / ".gsync/identity").write_text("{}")
    assert "damaged" in refusal(agent)


def test_an_index_of_a_newer_gsync_is_refused(zipapp: Path, root: Path, agent: Program, agents: list[Program]) -> None:
    agent.hello()
    agent.call("bye")
    agent.end()
    with sqlite3.connect(root / ".gsync/index.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    agents.append(Program(zipapp, root))
    assert "newer gsync" in refusal(agents[1])


@pytest.mark.root
def test_a_read_only_slave_is_refused(zipapp: Path, tmp_path: Path, agents: list[Program]) -> None:
    with FsImage(tmp_path / "fs", 16 << 20) as image:
        image.remount(read_only=True)
        agents.append(Program(zipapp, image.path))
        assert "read-only" in refusal(agents[0])
        agents[0].end()


def test_an_older_epoch_is_fenced(zipapp: Path, root: Path, agent: Program, agents: list[Program]) -> None:
    agent.hello(epoch=7)
    with pytest.raises(Refused) as caught:
        agent.call("commit", stime=1, entry_stime=1, epoch=6, clear=True)
    assert caught.value.type == "fenced"
    agent.call("bye")
    agent.end()
    agents.append(Program(zipapp, root))
    with pytest.raises(Refused) as caught:
        agents[1].hello(epoch=6)
    assert caught.value.type == "fenced"


# what it does not do


def test_only_the_methods_of_the_list_exist(agent: Program) -> None:
    agent.hello()
    for method in ("answer", "close", "tidy", "__init__", "_error", "nothing"):
        with pytest.raises(Refused, match="no such method"):
            agent.call(method)
    assert agent.call("ping") == {}


def test_nothing_comes_before_hello(agent: Program) -> None:
    for method in METHODS.keys() - {"hello", "look", "survey"}:
        with pytest.raises(Refused, match="must be hello"):
            agent.call(method)


LIMBO = b"gsync:limbo/old\0".hex()


@pytest.mark.parametrize(("field", "value"), [
    *((1, name) for name in ("..", "a/b", "/etc", "a\0", "", ".", "\u20ac", ".gsync", 7, None)),
    *((place, gfid) for place in (0, 2) for gfid in ("00", LIMBO, "no hex", 7, None)),
    (2, ROOT), (3, "0"), (3, True), (4, -1), (6, -1), (7, 1 << 32), (4, 1 << 63), (8, 1 << 200), (11, 7),
    (12, 7), (12, [["a"]]),
])
def test_a_bad_row_is_refused_and_hurts_no_other(agent: Program, root: Path, field: int, value: Any) -> None:
    agent.hello()
    bad = row(b"bad", 23, LNK, b"x").to_json()
    bad[field] = value
    answer = agent.call("fill", rows=[row(b"before", 21, LNK, b"x").to_json(), bad,
                                      row(b"after", 22, LNK, b"x").to_json()])
    assert answer["answers"] == ["ok", "error", "ok"]
    assert [(e[0], e[1]) for e in answer["errors"]] == [(1, errno.EINVAL)]
    assert {p.name for p in root.iterdir()} == {"before", "after", ".gsync"}


@pytest.mark.parametrize("bad", [None, [], ["x"], {}, 7])
def test_what_is_no_row_is_refused_everywhere(agent: Program, bad: Any) -> None:
    agent.hello()
    assert agent.call("fill", rows=[bad])["answers"] == ["error"]
    assert agent.call("remove", rows=[bad])["errors"][0][1] == errno.EINVAL
    assert agent.call("meta", rows=[bad])["answers"] == [errno.EINVAL]
    assert agent.call("landed", rows=[bad])["answers"] == [errno.EINVAL]


def test_an_error_of_one_name_hurts_no_other(agent: Program, root: Path) -> None:
    agent.hello()
    answer = agent.fill(row(b"one", 21, LNK, b"x"), row(b"n" * 256, 22, LNK, b"x"), row(b"two", 23, LNK, b"x"))
    assert answer["answers"] == ["ok", "error", "ok"]
    assert [(e[0], e[1]) for e in answer["errors"]] == [(1, errno.ENAMETOOLONG)]


# its end


def test_it_ends_after_silence(agent: Program) -> None:
    agent.hello(timeout=0.2)
    assert agent.process.wait(90) == 4
    assert b"nothing heard" in agent.stderr.read()


def test_it_ends_when_nobody_reads_its_answers(agent: Program) -> None:
    agent.hello(timeout=0.5)
    agent.fill(*(row(b"%d" % n, n, LNK, b"x" * 500) for n in range(100, 1100)))
    for _ in range(100):
        try:
            agent.send("list", dir=ROOT, after=None, limit=1000)
        except BrokenPipeError:
            break
    assert agent.process.wait(90) == 4


def test_what_a_commit_lets_go_is_deleted_while_nothing_is_asked(agent: Program, root: Path) -> None:
    agent.hello()
    agent.fill(row(b"dir", 11, DIR))
    agent.fill(row(b"dir", 11, DIR))
    for n in range(300):
        (root / "dir" / str(n)).mkdir()
    agent.call("remove", rows=[RemoveRow(ROOT_GFID, b"dir", 9).to_json()])
    assert agent.call("commit", stime=10, entry_stime=10, epoch=1, clear=True)["removed"] == 1
    until = time.monotonic() + 60
    while os.listdir(root / ".gsync/limbo/del") and time.monotonic() < until:
        time.sleep(0.01)
    assert os.listdir(root / ".gsync/limbo/del") == []
    assert agent.call("ping") == {}


def test_what_is_no_frame_ends_it(agent: Program) -> None:
    agent.hello()
    agent.stdin.write(b"\xff" * 100)
    agent.stdin.flush()
    assert agent.process.wait(90) != 0


@pytest.mark.root
def test_a_full_disk_is_said_as_such_and_the_batch_goes_through_when_there_is_room(
        zipapp: Path, tmp_path: Path, agents: list[Program]) -> None:
    with FsImage(tmp_path / "fs", 16 << 20) as image:
        agents.append(Program(zipapp, image.path))
        agent = agents[0]
        agent.hello()
        ballast = os.open(image.path / ".gsync/ballast", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(ballast, bytes(65536))
        rows = [row(b"%d" % n, n, LNK, b"t" * 2000) for n in range(100, 2100)]  # a block each
        with pytest.raises(Refused) as caught:
            agent.fill(*rows)
        assert (caught.value.type, caught.value.errno) == ("io", errno.ENOSPC)
        os.ftruncate(ballast, 0)
        os.close(ballast)
        (image.path / ".gsync/ballast").unlink()
        agent.end()
        agents.append(Program(zipapp, image.path))
        agents[1].hello()
        assert agents[1].fill(*rows)["answers"] == ["ok"] * 2000
        assert agents[1].call("commit", stime=1, entry_stime=1, epoch=1, clear=True)["stime"] == 1
        assert agents[1].end() == 0


# the zipapp


def test_the_zipapp_is_always_the_same(zipapp: Path) -> None:
    assert zipapp.read_bytes() == bundle.zipapp()


def test_it_needs_nothing_but_pythons_own_library(zipapp: Path, root: Path) -> None:
    """Run with no site-packages at all; every module of gsync that it loads is from the zipapp, or from
    what that has unpacked beside itself."""
    code = ("import runpy, sys, json\n"
            "sys.argv[:] = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: pass\n"
            "import gsync.slave.receive\n"
            "found = [[n, getattr(m, '__file__', None)] for n, m in sys.modules.items() if m]\n"
            "print(json.dumps(found), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, zipapp, root], stdin=subprocess.DEVNULL,
                          capture_output=True, check=True)
    loaded = {name: file or "" for name, file in json.loads(done.stderr.splitlines()[-1])}
    assert not any("site-packages" in file for file in loaded.values())
    own = {name: file for name, file in loaded.items() if name.partition(".")[0] == "gsync"}
    assert "gsync.slave.directory.apply" in own
    assert all(file.startswith((f"{zipapp}/", f"{zipapp.with_suffix('')}-")) for file in own.values())


def test_no_state_is_left_in_the_tree_but_in_its_folder(agent: Program, root: Path) -> None:
    agent.hello()
    agent.call("bye")
    agent.end()
    assert [p.name for p in root.iterdir()] == [".gsync"]
    assert not (root / ".gsync/probe").exists()
    shutil.rmtree(root / ".gsync")


def test_gfids_are_told_as_the_worker_knows_them(agent: Program) -> None:
    agent.hello()
    gfid = (11).to_bytes(16, "big")
    agent.fill(row(b"x", 11, LNK, b"y"))
    assert agent.call("list", dir=ROOT, after=None, limit=9)["names"] == [["x", gfid_str(gfid).replace("-", "")]]
    assert agent.call("known", gfids=[gfid.hex(), ROOT, "12" * 16]) == [1, 1, 0]
