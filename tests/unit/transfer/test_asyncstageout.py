"""AsyncStageOut's reporter files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import LockedError
from gsync.base.process import Lock
from gsync.transfer.catalog import asyncstageout
from gsync.transfer.catalog.asyncstageout import Outbox
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.transfers import Transfers


class World:
    def __init__(self, path: Path) -> None:
        self.transfers = Transfers(str(path / "home"))
        self.outbox = path / "outbox"
        self.clock = SYSTEM_CLOCK

    def end(self, owner: str, name: bytes, state: TransferState = TransferState.DONE, reason: str = "") -> int:
        request = Intake(self.transfers).submit(NewRequest("queue", owner, [
            NewOperation("copy", [NewTransfer("/a", name, "/b", b"store/" + name)])]))
        (row,) = self.transfers.page(request=request)
        self.transfers.advance([row.id], TransferState.NEW, state, reason=reason)
        return row.id

    def report(self) -> int:
        return Outbox(str(self.outbox), self.clock).report(self.transfers)

    def read(self, owner: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.outbox / owner).glob("Reporter-*.json"))]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.transfers.close()


def test_what_ended_by_user(world: World) -> None:
    world.end("ann", b"one")
    world.end("ann", b"two", TransferState.FAILED, "Permission denied")
    world.end("ann", b"three", TransferState.KILLED, "killed")
    world.end("bob", b"four")
    assert world.report() == 2
    (ann,), (bob,) = world.read("ann"), world.read("bob")
    assert ann["LFNs"] == ["store/one", "store/two", "store/three"]
    assert ann["transferStatus"] == ["done", "failed", "failed"]
    assert ann["failure_reason"] == ["", "Permission denied", "killed"]
    assert (ann["username"], bob["LFNs"]) == ("ann", ["store/four"])


def test_each_result_is_in_one_file(world: World) -> None:
    world.end("ann", b"one")
    assert [world.report(), world.report()] == [1, 0]
    world.end("ann", b"two")
    assert world.report() == 1
    assert [r["LFNs"] for r in world.read("ann")] == [["store/one"], ["store/two"]]


def test_aso_16_two_reports_in_a_second_are_two_files(world: World) -> None:
    """ASO names a file by the second, so the second report replaces the first (item 16)."""
    world.clock = Clock(now=lambda: 1_700_000_000_000_000_000)
    for name in (b"one", b"two"):
        world.end("ann", name)
        world.report()
    assert [r["LFNs"] for r in world.read("ann")] == [["store/one"], ["store/two"]]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["replace_file", "rename", "fsync_dir"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_aso_16_killed_anywhere_a_reader_sees_each_result_once(world: World, monkeypatch: pytest.MonkeyPatch, name: str,
                                                        after: bool, taken: bool) -> None:
    """Also one that takes the file away at once. ASO's reader finds half of a file, and unlinks it (item 16)."""
    world.end("ann", b"one")
    owner = os if name == "rename" else asyncstageout
    original = getattr(owner, name)

    def dies(*args: Any, **more: Any) -> Any:
        if after:
            original(*args, **more)
        raise Killed

    seen: list[str] = []

    def reader() -> None:
        for path in (world.outbox / "ann").glob("Reporter-*.json") if (world.outbox / "ann").exists() else []:
            seen.extend(json.loads(path.read_text())["LFNs"])
            path.unlink()

    monkeypatch.setattr(owner, name, dies)
    with pytest.raises(Killed):
        world.report()
    monkeypatch.undo()
    if taken:
        reader()
    world.report()
    reader()
    assert seen == ["store/one"]


def test_what_failed_and_then_worked_is_two_results(world: World) -> None:
    ident = world.end("ann", b"one", TransferState.FAILED, "no space")
    world.report()
    Orders(world.transfers).retry(ids=[ident])
    world.transfers.advance([ident], TransferState.NEW, TransferState.DONE)
    world.report()
    assert [r["transferStatus"] for r in world.read("ann")] == [["failed"], ["done"]]


@pytest.mark.parametrize(("place", "replicate", "status"), [
    (TransferState.DONE, None, ["done"]), (TransferState.FAILED, None, ["failed"]),
    (TransferState.DONE, TransferState.DONE, ["done"]),
    (TransferState.DONE, TransferState.FAILED, ["failed"]), (TransferState.DONE, TransferState.NEW, []),
    (TransferState.FAILED, TransferState.KILLED, ["failed"])])
def test_a_send_is_one_result_when_it_is_known(world: World, place: TransferState, replicate: TransferState | None,
                                               status: list[str]) -> None:
    """At a failover store it is not yet where it is wanted; what registers and tidies is nobody's file."""
    kinds = ["place", *(["replicate"] if replicate else []), "register", "tidy"]
    request = Intake(world.transfers).submit(NewRequest("send", "ann", [
        NewOperation(kind, [NewTransfer("/a", b"x", "/b", b"x")]) for kind in kinds]))
    first, *rest = world.transfers.page(request=request)
    world.transfers.advance([first.id], TransferState.NEW, place, reason="" if place is TransferState.DONE else "why")
    if replicate not in (None, TransferState.NEW, TransferState.KILLED):
        world.transfers.advance([rest[0].id], TransferState.NEW, replicate)
    world.report()
    assert [s for r in world.read("ann") for s in r["transferStatus"]] == status


def test_names_that_are_not_utf8_and_owners_that_are_paths(world: World) -> None:
    for owner in ("../../etc", ".."):
        world.end(owner, b"a\xff\n")
    world.report()
    for folder in ("%2E.%2F..%2Fetc", "%2E."):
        (report,) = world.read(folder)
        assert os.fsencode(report["LFNs"][0]) == b"store/a\xff\n"


def test_one_reporter_at_a_time(world: World) -> None:
    world.report()
    with Lock(str(world.outbox / ".gsync-reporter.lock"), "it"), pytest.raises(LockedError):
        world.report()
