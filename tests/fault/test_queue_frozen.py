"""A process that is frozen (SIGSTOP) in the middle of a transaction: nobody else hangs, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.transfer.archive.batches import Batches, JobOptions
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.queue.worker import QueueWorker
from lab.cli import Cli
from lab.nights import Nights


@pytest.fixture
def looks(tmp_path: Path) -> list[list[str]]:
    """Commands that change nothing."""
    return [["queue", "list", "--json"], ["publish", "status", "--json"], ["archive", "list", "--json"],
            ["store", "list", "--json"], ["deliver", "status", "--json", "-c", str(Nights(tmp_path).ini)],
            ["queue", "kill", "--owner", "me", "--dry-run"]]


@pytest.fixture
def frozen(cli: Cli, looks: list[list[str]], tmp_path: Path) -> Iterator[int]:
    """The pid of a process that has begun to write, and stands still."""
    for name in ("run", "copy"):
        (tmp_path / name).mkdir()
    for command in [*looks, ["archive", "create", str(tmp_path / "run"), "--vault", str(tmp_path / "copy")]]:
        cli(*command)
    pid = os.fork()
    if pid == 0:
        transfers = Transfers(cli.home.path)
        with transfers.atomic():
            transfers.insert(NewRequest("queue", "slow", [NewOperation("copy", [NewTransfer("/", b"a", "/", b"b")])]))
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    cli("archive", "delete", str(tmp_path / "run"), "--yes")  # nothing stays immutable


def test_others_look_spool_and_say_who_holds_it(cli: Cli, frozen: int, looks: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    for command in looks:
        cli(*command)
    spooled = json.loads(cli("queue", "submit", str(tmp_path / "a"), str(tmp_path / "b"), "--json"))["id"]
    said = cli.fails("queue", "kill", "--owner", "me", "--yes", code=3)
    assert f"process {frozen} was stopped while writing to it; kill -CONT {frozen} resumes it" in said
    assert json.loads(cli("queue", "list", "--kind", "queue", "--json")) == []
    a_job_on_an_archive_goes_on(cli, tmp_path)
    os.kill(frozen, signal.SIGCONT)
    QueueWorker(cli.home.path, once=True).run()
    found = {request["id"]: request["state"] for request in json.loads(
        cli("queue", "list", "--kind", "queue", "--json"))}
    assert len(found) == 2  # that of the frozen process too
    assert found[spooled] == TransferState.DONE.value
    assert (tmp_path / "b").read_text() == "a"


def a_job_on_an_archive_goes_on(cli: Cli, tmp_path: Path) -> None:
    transfers = Transfers(cli.home.path)
    archives = Archives(transfers, cli.home.path)
    told: list[Archive] = []
    batches = Batches(archives, archives.the(os.fsencode(tmp_path / "run")), JobOptions(), told.append)
    batches.stage("copying", 7)
    batches.close()
    transfers.close()
    assert [(archive.stage, archive.entries_all) for archive in told] == [("copying", 7)]
