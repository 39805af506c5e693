"""send: where a file ends up, what is pending, and that it may be killed anywhere."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsync.base.errors import UsageError
from gsync.transfer import Client, Sent
from gsync.transfer.catalog.catalog import SqliteCatalog
from gsync.transfer.kinds import HANDLERS
from gsync.transfer.queue.handlers import Context
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.queue.worker import QueueSettings, QueueWorker
from gsync.transfer.send import FAILOVER_FOLDER, OPERATIONS, carry_out
from gsync.transfer.stores.dir import DirStore
from gsync.transfer.stores.store import Category, StoreError
from lab import REPOSITORY

POLICY = RetryPolicy(first_pause=0, ban=0)


class World:
    """Stores east, west (wanted) and spare (failover), each a folder; what is switched off is away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = str(path / "home")
        self.lease, self.patience = 60.0, 30.0
        self.file = path / "out" / "result.dat"
        self.file.parent.mkdir()
        self.file.write_bytes(b"precious" * 1000)
        with Client(self.home) as client:
            for name in ("east", "west", "spare"):
                (path / name).mkdir()
                client.stores.add(name, str(path / name))

    def off(self, *names: str) -> None:
        for name in names:
            (self.path / name).rename(self.path / f"{name}.off")

    def on(self, *names: str) -> None:
        with Client(self.home) as client:
            for name in names:
                (self.path / f"{name}.off").rename(self.path / name)
                client.stores.allow(name)

    def send(self, *to: str, failover: tuple[str, ...] = ("spare",), **more: Any) -> Sent:
        with Client(self.home, POLICY, lease=self.lease, patience=self.patience) as client:
            return client.send(str(self.file), to or ("east", "west"), failover, **more)

    def files(self, name: str) -> list[str]:
        folder = self.path / name
        folder = folder if folder.exists() else self.path / f"{name}.off"
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    def whole(self) -> list[str]:
        """Where whole copies are."""
        data = self.file.read_bytes() if self.file.exists() else b"precious" * 1000
        return [name for name in ("east", "west", "spare") for file in self.files(name)
                if self._of(name, file).read_bytes() == data]

    def _of(self, name: str, file: str) -> Path:
        folder = self.path / name
        return (folder if folder.exists() else self.path / f"{name}.off") / file

    def work(self) -> None:
        """The queue, until nothing more can be done now."""
        QueueWorker(self.home, QueueSettings(policy=RetryPolicy(first_pause=0)), handlers=HANDLERS, once=True).run()

    def work_inline(self) -> None:
        """The same in this thread, where a test can kill it."""
        transfers = Transfers(self.home)
        stores = Stores(transfers)
        try:
            Intake(transfers).sweep()
            for _ in range(20):
                rows = Leases(transfers, "test").acquire(1, 60)
                if not rows:
                    return
                transfers.advance([rows[0].id], TransferState.ACQUIRED, TransferState.SUBMITTED)
                try:
                    carry_out(Context(transfers, stores), rows[0])
                except StoreError as exc:
                    state = TransferState.FAILED if exc.category is Category.PERMANENT else TransferState.RETRY
                    transfers.advance([rows[0].id], TransferState.SUBMITTED, state, reason=str(exc), worker=None,
                                      not_before=2**62)
                else:
                    transfers.advance([rows[0].id], TransferState.SUBMITTED, TransferState.DONE)
            raise AssertionError("it does not come to an end")
        finally:
            stores.close()
            transfers.close()

    def retry(self, sent: Sent) -> None:
        with Client(self.home) as client:
            client.retry(sent.request)
        self.work()

    def state(self, sent: Sent) -> TransferState:
        with Client(self.home) as client:
            return client.status(sent.request).request.state

    def registered(self, name: bytes = b"result.dat") -> list[str]:
        return [store for store, _ in SqliteCatalog(os.path.join(self.home, "catalog.db")).where(name)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_to_the_first_store_that_takes_it(world: World) -> None:
    sent = world.send(register="default")
    assert (str(sent.at), sent.pending, sent.failed, sent.is_temporary) == ("east:result.dat", (), (), False)
    assert world.state(sent) is TransferState.DONE
    assert world.whole() == ["east"]
    assert world.registered() == ["east"]


def test_to_the_second_one_while_the_first_is_down(world: World) -> None:
    world.off("east")
    sent = world.send()
    assert str(sent.at) == "west:result.dat"
    assert [a.place.store for a in sent.failed] == ["east"]
    assert sent.failed[0].category is Category.STORE_DOWN
    assert sent.pending == ()


def test_into_a_folder_under_another_name(world: World) -> None:
    assert str(world.send("east:2024/nov", name="run1.dat").at) == "east:2024/nov/run1.dat"
    assert world.files("east") == ["2024/nov/run1.dat"]


def test_failover_then_replicated_and_the_temporary_copy_removed(world: World) -> None:
    world.off("east", "west")
    sent = world.send(register="default")
    assert sent.is_temporary
    assert [p.split(" ")[0] for p in sent.pending] == ["replicate", "register", "remove"]
    assert world.whole() == ["spare"]
    assert world.registered() == ["spare"]  # found while it waits
    world.work()
    assert world.whole() == ["spare"]
    world.on("east", "west")
    world.file.unlink()  # who has been told where it is needs it no more
    world.retry(sent)
    assert world.whole() == ["east"]
    assert world.state(sent) is TransferState.DONE
    assert world.registered() == ["east"]
    assert os.listdir(world.path / "spare") == []  # no folder is left behind either


def test_replicated_to_the_wanted_store_that_is_back_first(world: World) -> None:
    world.off("east", "west")
    sent = world.send()
    world.on("west")
    world.retry(sent)
    assert world.whole() == ["west"]


def test_dirac_13_nobody_takes_it_is_said_with_every_reason_and_not_done_later(world: World) -> None:
    world.off("east", "west", "spare")
    sent = world.send()
    assert sent.at is None
    assert [a.place.store for a in sent.failed] == ["east", "west", "spare"]
    assert world.state(sent) is TransferState.FAILED
    world.on("east", "west", "spare")
    world.work()
    assert world.whole() == []


def test_an_existing_file_is_not_replaced_and_failover_is_no_way_out(world: World) -> None:
    (world.path / "east" / "result.dat").write_bytes(b"another one")
    sent = world.send("east")
    assert sent.at is None
    assert "exist" in sent.failed[0].error.lower()
    assert (world.path / "east" / "result.dat").read_bytes() == b"another one"
    assert world.files("spare") == []


def test_the_same_file_there_already_is_fine_and_never_removed(world: World) -> None:
    (world.path / "west" / "result.dat").write_bytes(world.file.read_bytes())
    sent = world.send("west", "east")
    assert str(sent.at) == "west:result.dat"
    assert world.state(world.send("east", "west")) is TransferState.DONE
    assert world.whole() == ["east", "west"]


def test_dirac_13_a_catalog_that_is_down_is_a_pending_registration_not_a_failed_send(world: World) -> None:
    """DIRAC moved on to the next store when registering failed, and left an orphan (item 13)."""
    catalog = world.path / "missing" / "catalog.jsonl"
    sent = world.send(register=f"jsonl:{catalog}")
    assert str(sent.at) == "east:result.dat"
    assert sent.pending == (f"register it in jsonl:{catalog}",)
    assert world.whole() == ["east"]
    catalog.parent.mkdir()
    world.retry(sent)
    assert json.loads(catalog.read_text())["store"] == "east"
    assert world.state(sent) is TransferState.DONE


def test_a_catalog_that_is_down_does_not_hold_up_the_replication_but_the_removal(world: World) -> None:
    catalog = world.path / "missing" / "catalog.jsonl"
    world.off("east", "west")
    sent = world.send(register=f"jsonl:{catalog}")
    world.on("east", "west")
    world.retry(sent)
    assert world.whole() == ["east", "spare"]
    catalog.parent.mkdir()
    with Client(world.home) as client:
        client.stores.allow(f"jsonl:{catalog}")  # as if the while were over for which it is left alone
    world.retry(sent)
    assert world.whole() == ["east"]
    assert [(e["action"], e["store"]) for e in map(json.loads, catalog.read_text().splitlines())] == [
        ("register", "east"), ("withdraw", "spare")]


@pytest.mark.parametrize("content", [None, b"", b"precious" * 999 + b"spoiled!"])
def test_the_only_replica_is_not_removed(world: World, content: bytes | None) -> None:
    """The wanted replica is missing, empty or spoiled when the temporary one is to go."""
    world.off("east")
    sent = world.send("east")
    world.on("east")
    original = DirStore.checksum
    spoiled: list[bool] = []

    def spoils(store: DirStore, path: bytes, algorithm: str = "sha256") -> str:
        if store.name == "spare":
            raise AssertionError("the temporary one is ours by its name; nobody has to read it")
        return original(store, path, algorithm)

    transfers = Transfers(world.home)
    stores = Stores(transfers)
    Orders(transfers).retry(request=sent.request)
    for kind in ("replicate", "tidy"):
        (row,) = Leases(transfers, "test").acquire(1, 60, request=sent.request)
        assert row.kind == kind
        if kind == "tidy":
            wanted = world.path / "east" / "result.dat"
            wanted.unlink() if content is None else wanted.write_bytes(content)
            DirStore.checksum, spoiled = spoils, [True]  # type: ignore[method-assign, assignment]
        try:
            if kind == "tidy":
                with pytest.raises(StoreError, match="is the only one") as caught:
                    carry_out(Context(transfers, stores), row)
                assert caught.value.category is Category.PERMANENT
            else:
                carry_out(Context(transfers, stores), row)
                transfers.advance([row.id], TransferState.ACQUIRED, TransferState.DONE)
        finally:
            DirStore.checksum = original  # type: ignore[method-assign]
    stores.close()
    transfers.close()
    assert spoiled
    assert world.whole() == ["spare"]


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"-rf", b"100%", b"x" * 255, b" ", b"'; rm *"])
def test_any_name(world: World, name: bytes) -> None:
    file = os.path.join(os.fsencode(world.file.parent), name)
    with open(file, "wb") as out:
        out.write(b"x")
    world.off("east")
    with Client(world.home, POLICY) as client:
        sent = client.send(file, ["east"], ["spare"], register="default")
    world.on("east")
    world.retry(sent)
    assert os.listdir(os.fsencode(world.path / "east")) == [name]
    assert os.listdir(world.path / "spare") == []
    assert world.registered(name) == ["east"]


def test_an_empty_file(world: World) -> None:
    """DIRAC and EOS refuse them."""
    world.file.write_bytes(b"")
    assert str(world.send().at) == "east:result.dat"
    assert (world.path / "east" / "result.dat").read_bytes() == b""


def test_a_name_that_is_too_long_for_every_store(world: World) -> None:
    with Client(world.home, POLICY) as client:
        sent = client.send(str(world.file), ["east"], ["spare"], name="x" * 256)
    assert sent.at is None
    assert [a.place.store for a in sent.failed] == ["east"]


@pytest.mark.parametrize("what", ["missing", "folder", "fifo"])
def test_what_is_no_file_is_refused_before_anything_is_noted(world: World, what: str) -> None:
    path = world.path / what
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with Client(world.home) as client:
        with pytest.raises(UsageError, match=what):
            client.send(str(path), ["east"])
        assert client.requests() == []


def test_a_file_that_changes_on_the_way_is_not_passed_off_as_sent(world: World) -> None:
    with Client(world.home, POLICY) as client:
        plan = client.plan(str(world.file), ["east"], ["spare"])
        world.file.write_bytes(b"PRECIOUS" * 1000)
        sent = client.carry_out(plan)
    assert sent.at is None
    assert "it changed after it was submitted" in sent.failed[-1].error
    assert world.files("east") == world.files("spare") == []


def test_a_symlink_is_followed(world: World) -> None:
    link = world.path / "link.dat"
    link.symlink_to(world.file)
    with Client(world.home) as client:
        assert str(client.send(str(link), ["east"]).at) == "east:link.dat"


def test_the_answer_of_a_store_is_lost_after_the_file_arrived(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, so it is neither sent elsewhere nor left behind as an orphan."""
    original = DirStore.put

    def loses_answer(store: DirStore, *args: Any, **more: Any) -> Any:
        original(store, *args, **more)
        raise StoreError("the link is lost", Category.STORE_DOWN)

    monkeypatch.setattr(DirStore, "put", loses_answer)
    sent = world.send()
    assert str(sent.at) == "east:result.dat"
    assert world.whole() == ["east"]


def test_a_store_that_dies_with_the_answer_is_tidied_when_it_is_back(world: World,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    original = DirStore.put

    def dies(store: DirStore, *args: Any, **more: Any) -> Any:
        result = original(store, *args, **more)
        if store.name == "east":
            world.off("east")
            os.chmod(world.path / "east.off" / "result.dat", 0)
            monkeypatch.setattr(DirStore, "stat", stat_dead)
            raise StoreError("the link is lost", Category.STORE_DOWN)
        return result

    stat_alive = DirStore.stat

    def stat_dead(store: DirStore, path: bytes) -> Any:
        if store.name == "east":
            raise StoreError("the link is lost", Category.STORE_DOWN)
        return stat_alive(store, path)

    monkeypatch.setattr(DirStore, "put", dies)
    sent = world.send()
    assert str(sent.at) == "west:result.dat"
    assert sent.pending == ("remove the replica at east:result.dat",)
    monkeypatch.undo()
    world.on("east")
    world.retry(sent)
    assert world.whole() == ["west"]
    assert world.state(sent) is TransferState.DONE


@pytest.mark.parametrize("fails", range(1, 5))
def test_dirac_13_a_database_that_fails_on_the_way_is_no_failed_send(world: World, fails: int,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """DIRAC answers ERROR after the upload when the removal cannot be queued, so that the file is sent again."""
    calls = 0
    original = Transfers.set_arguments

    def set_arguments(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= fails:
            raise sqlite3.OperationalError("database or disk is full")
        original(*args)

    world.off("east", "west")
    monkeypatch.setattr(Transfers, "set_arguments", set_arguments)
    world.lease = 0
    sent = world.send()
    monkeypatch.undo()
    assert world.whole() == (["spare"] if fails > 1 else [])  # what cannot be noted is not begun
    assert (sent.at is not None) == (fails > 1)
    assert bool(sent.pending)
    world.on("east", "west")
    with sqlite3.connect(os.path.join(world.home, "transfers.db")) as db:
        db.execute("UPDATE transfers SET lease=0")
    db.close()
    for _ in range(2):
        world.work()
    assert world.whole() == ["east"]
    assert os.listdir(world.path / "spare") == []
    assert world.state(sent) is TransferState.DONE


# killed at every step

LAST = 50   # durable steps, counted before and behind, of the whole way over the failover store


class Killed(BaseException):
    """The process is gone."""


def steps_of(world: World, monkeypatch: pytest.MonkeyPatch, die_at: int) -> int:
    """Have the process die before or behind its n-th durable step (0: never); how many steps there were."""
    count = 0

    def wrapped(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def step(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == die_at:
                raise Killed
            result = original(*args, **more)
            count += 1
            if count == die_at:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, step)

    for owner, name in ((DirStore, "put"), (DirStore, "delete"), (Intake, "begin"), (Transfers, "advance"),
                        (Transfers, "set_arguments"), (SqliteCatalog, "apply")):
        wrapped(owner, name)
    try:
        world.send(register="default")
        world.on("east", "west")
        for _ in range(2):
            with Client(world.home) as client:
                for request in client.requests():
                    client.retry(request.id)
            world.work_inline()
    except Killed:
        pass
    monkeypatch.undo()
    return count


@pytest.mark.parametrize("die_at", range(1, LAST + 2))
def test_dirac_13_killed_at_every_step(world: World, monkeypatch: pytest.MonkeyPatch, die_at: int) -> None:
    """Never no copy, never a copy that no request knows of; and the queue brings it to its end."""
    world.off("east", "west")
    world.lease = 0
    steps = steps_of(world, monkeypatch, die_at)
    if steps < die_at:
        assert steps == LAST  # else some were not tried
        assert world.whole() == ["east"]
        return
    requests = known(world)
    for name in ("east", "west", "spare"):
        for file in world.files(name):
            assert f"{name}:{file}" in requests
    if not (world.path / "east").exists():
        world.on("east", "west")
    with Client(world.home) as client:
        for request in client.requests():
            client.retry(request.id)
    with sqlite3.connect(os.path.join(world.home, "transfers.db")) as db:
        for table in ("transfers", "owners"):
            db.execute(f"UPDATE {table} SET lease=0")
    db.close()
    for _ in range(2):  # what was examined is due by the next look
        world.work()
    with Client(world.home) as client:
        states = [request.state for request in client.requests()]
    if states:  # else it died before it was noted, and nothing was moved
        assert states == [TransferState.DONE]
        assert world.whole() == ["east"]
        assert os.listdir(world.path / "spare") == []
        assert world.registered() == ["east"]
    else:
        assert world.whole() == []


def known(world: World) -> set[str]:
    """Every place that a request knows."""
    transfers = Transfers(world.home)
    rows = transfers.read("SELECT arguments FROM operations WHERE position=0")
    transfers.close()
    return {f"{store}:{path}" for row in rows for store, path in json.loads(row[0])["begun"]}


# without the database

@pytest.fixture
def locked(world: World) -> Iterator[sqlite3.Connection]:
    world.patience = 0.01
    db = sqlite3.connect(os.path.join(world.home, "transfers.db"), isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    yield db
    db.close()


@pytest.mark.parametrize("register", [None, "default"])
def test_database_down_goes_by_the_spool(world: World, locked: sqlite3.Connection, register: str | None) -> None:
    world.off("east", "west")
    sent = world.send(register=register)
    assert sent.is_temporary
    assert os.listdir(os.path.join(world.home, "spool")) == [f"{sent.request}.json"]
    locked.close()
    world.file.unlink()
    world.on("east", "west")
    world.work()
    assert os.listdir(os.path.join(world.home, "spool")) == []
    assert world.state(sent) is TransferState.DONE
    assert world.whole() == ["east"]
    assert world.registered() == (["east"] if register else [])


def test_database_down_and_killed_after_the_upload(world: World, locked: sqlite3.Connection,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is gone: what it had noted in the spool is taken in, and only then."""
    world.off("east", "west")
    monkeypatch.setattr(Intake, "submit_kept", lambda *args: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        world.send()
    (name,) = os.listdir(os.path.join(world.home, "spool"))
    assert name.endswith(".busy")
    locked.close()
    world.work()
    assert os.listdir(os.path.join(world.home, "spool")) == [name]  # we live still
    spool = os.path.join(world.home, "spool")
    os.rename(os.path.join(spool, name), os.path.join(spool, f"{name.split('.')[0]}.{2**22 + 5}-1.busy"))
    world.on("east", "west")
    world.work()
    assert world.whole() == ["east"]


def test_neither_database_nor_spool_moves_nothing(world: World, locked: sqlite3.Connection) -> None:
    Path(world.home, "spool").write_text("in the way")
    with pytest.raises(OSError, match="spool"):
        world.send()
    assert world.whole() == []


def test_failover_place_is_one_that_nobody_else_has(world: World) -> None:
    world.off("east", "west")
    first, second = world.send(), world.send()
    assert first.at is not None
    assert second.at is not None
    assert first.at.path == FAILOVER_FOLDER + b"/" + first.request.encode() + b"/result.dat"
    assert first.at != second.at


def test_killed_by_hand_stays_killed_and_its_replica_is_kept(world: World) -> None:
    world.off("east", "west")
    sent = world.send()
    with Client(world.home) as client:
        client.kill(sent.request)
    world.on("east", "west")
    world.work()
    assert world.state(sent) is TransferState.KILLED
    assert world.whole() == ["spare"]
    transfers = Transfers(world.home)
    assert Orders(transfers).prune(-1) == 0  # it is all that is known of that replica
    transfers.close()


def test_dirac_13_every_operation_is_recorded_before_the_upload(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DIRAC kept them in memory until the end, so a crash left orphans (item 13)."""
    seen: list[list[str]] = []
    original = DirStore.put

    def put(store: DirStore, *args: Any, **more: Any) -> Any:
        transfers = Transfers(world.home)
        seen.append([row[0] for row in transfers.read("SELECT kind FROM operations ORDER BY position")])
        transfers.close()
        return original(store, *args, **more)

    monkeypatch.setattr(DirStore, "put", put)
    world.send(register="default")
    assert seen == [list(OPERATIONS)]


def test_dirac_13_a_send_never_sleeps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DIRAC sleeps for up to 970 s within the call (item 13)."""
    def sleep(seconds: float) -> None:
        raise AssertionError("sleeps")

    monkeypatch.setattr("time.sleep", sleep)
    world.off("east", "west")
    world.send(register=f"jsonl:{world.path}/missing/x")


@pytest.mark.parametrize(("to", "failover"), [((), ()), (("nowhere",), ()), (("east", "east"), ()),
                                              (("east",), ("east",)), (("east:a/../b",), ())])
def test_wrong_stores(world: World, to: tuple[str, ...], failover: tuple[str, ...]) -> None:
    with Client(world.home) as client, pytest.raises(UsageError):
        client.send(str(world.file), to, failover)
    assert world.whole() == []


def test_the_example_of_the_documents(world: World, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "send.md").read_text()
    (code,) = [block.partition("```")[0] for block in page.split("```python\n")[1:] if "gsync.transfer" in block]
    for name, there in (("disk1", world.path / "missing"), ("disk2", world.path / "west"),
                        ("scratch", world.path / "spare")):
        code = code.replace(f"/mnt/{name}", str(there))
    monkeypatch.chdir(world.file.parent)
    monkeypatch.setenv("GSYNC_HOME", world.home)
    exec(compile(code, "send.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{world.path}/west:result.dat False () ['store ")
    assert second == "TransferState.DONE"
