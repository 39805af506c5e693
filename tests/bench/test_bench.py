"""The bench itself: what it measures with, and one small run of all of it."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.bench.contestants import PROJECT, Gsync, Lsyncd, Rsync, Slave
from lab.bench.measure import MIB, CountingProxy, Failed, MemoryWatch, Result, Running, role_of, table


def test_the_ratio_of_a_round_is_of_its_medians() -> None:
    result = Result("lag", "s", "lsyncd", max_ratio=0.5)
    result.gsync = [[1, 2, 9], [4]]
    result.peers = [[4, 4], [16]]
    assert result.ratios == [0.5, 0.25]
    assert result.aim() == "ratio ≤ 0.5: met"
    assert result.cells() == [
        "lag", "1 / 3 / 9 s", "lsyncd", "4 / 4 / 16 s", "0.25 / 0.375 / 0.5", "ratio ≤ 0.5: met"]


def test_an_aim_can_be_a_value() -> None:
    result = Result("sent", "MB", "lsyncd", max_value=1)
    result.gsync = [[0.5], [3], [3]]
    assert result.aim() == "≤ 1 MB: missed"


def test_a_table_is_aligned() -> None:
    assert table(["a", "long heading"], [["wide cell", "1"]]).splitlines() == [
        "| a         | long heading |", "|-----------|--------------|", "| wide cell | 1            |"]


@pytest.mark.parametrize(("argv", "role"), [
    (["/x/.venv/bin/python", "/x/.venv/bin/gsync", "run", "/a", "/b"], "run"),
    (["python", "-P", "-m", "gsync.service.child", "1", "gsync.service.run_worker", "s"], "worker"),
    (["python", "-P", "-m", "gsync.service.child", "1", "gsync.recorder", "v"], "recorder"),
    (["python3", "-I", "/root/.cache/gsync/agent-0123abc.pyz", "/b"], "agent"),
    (["python3", "-I", "/root/.cache/gsync/agent-0123abc.pyz", "--receive", "/b"], "receiver"),
    (["python", "-I", "-c", "from gsync.slave.program import main", "/b"], "agent"),
    (["ssh", "host", "run", "gsync"], None),
    (["rsync", "-a"], None),
])
def test_every_process_of_gsync_has_a_role(argv: list[str], role: str | None) -> None:
    assert role_of(argv) == role


def test_peak_memory_is_seen_below_a_process() -> None:
    watch = MemoryWatch()
    child = [sys.executable, "-c", f"x = b'x' * {60 * MIB}; del x; input()", "gsync.service.run_worker"]
    parent = f"import subprocess; subprocess.run({child!r})"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as process:
        watch.parents.add(process.pid)
        watch.start()
        end = time.monotonic() + 90
        while watch.peaks.get("worker", 0) < 60 * MIB and time.monotonic() < end:
            time.sleep(0.01)
        watch.stop()
        process.communicate(b"\n")
    assert 60 * MIB < watch.peaks["worker"] < 160 * MIB
    assert list(watch.peaks) == ["worker"]


def test_the_proxy_counts_both_directions() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = CountingProxy(server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            served, _address = server.accept()
            with served:
                client.sendall(b"q" * 1000)
                assert len(served.recv(1000, socket.MSG_WAITALL)) == 1000
                served.sendall(b"a" * 5000)
                assert len(client.recv(5000, socket.MSG_WAITALL)) == 5000
                client.shutdown(socket.SHUT_WR)
                assert served.recv(1) == b""
        proxy.stop()
    assert proxy.sent == 6000


def test_a_contestant_that_fails_is_quoted(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo no such slave >&2; exit 4"]
    with Running(argv, tmp_path / "log", MemoryWatch()) as running, pytest.raises(Failed, match="no such slave"):
        running.finish()
    with Running(argv, tmp_path / "log", MemoryWatch()) as running, pytest.raises(Failed, match="with 4 before equal"):
        running.wait_for("equal", lambda: False)


def test_command_lines_are_those_of_a_user(tmp_path: Path) -> None:
    local = Slave(tmp_path / "b", tmp_path / "state")
    remote = Slave(tmp_path / "b", tmp_path / "state", tmp_path / "config")
    assert Gsync().once(Path("/a"), local)[1:] == [
        "run", "/a", f"{tmp_path}/b", "--state", f"{tmp_path}/state", "--once"]
    assert Gsync().follow(Path("/a"), remote)[3:4] == [f"gsync-test:{tmp_path}/b"]
    assert Rsync().once(Path("/a"), remote) == [
        "rsync", "-a", "-e", f"ssh -F {tmp_path}/config", "/a/", f"gsync-test:{tmp_path}/b/"]
    assert "delay = 1" in Path(Lsyncd().follow(Path("/a"), remote)[1]).read_text()


@pytest.mark.slow
@pytest.mark.root
def test_a_small_bench_measures_gsync_and_peers(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    argv = [str(PROJECT / "scripts/bench"), "--scale", "0.002", "--rounds", "1"]
    argv += ["--only", "initial-small", "--workdir", str(tmp_path), "--json", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert len(document["results"]) == 2
    assert all(result["gsync_summary"] and result["peer_summary"] for result in document["results"])
    for peaks in document["peak_memory"].values():
        assert set(peaks) >= {"run", "recorder", "worker", "agent", "receiver"}
    assert "initial sync, 200 x 1 KiB, ssh" in done.stdout
