"""gsync send and gsync publish, as one calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gsync.transfer import Client
from gsync.transfer.catalog.catalog import SqliteCatalog
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.transfers import Transfers
from lab.cli import Cli


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "x.dat"
    path.parent.mkdir()
    path.write_text("data")
    for name in ("east", "west", "spare"):
        (tmp_path / name).mkdir()
    return path


def test_where_it_is(cli: Cli, file: Path, tmp_path: Path) -> None:
    found = json.loads(cli("send", str(file), "--to", f"{tmp_path}/east,{tmp_path}/west", "--register", "default",
                           "--json"))
    assert found["at"] == {"store": f"{tmp_path}/east", "path": "x.dat"}
    assert (found["pending"], found["failed"], found["temporary"], found["size"]) == ([], [], False, 4)
    assert SqliteCatalog(os.path.join(cli.home.path, "catalog.db")).where(b"x.dat") == [(f"{tmp_path}/east", b"x.dat")]


def test_what_is_pending_and_what_failed_on_the_way(cli: Cli, file: Path, tmp_path: Path) -> None:
    out = cli("send", str(file), "--to", f"{tmp_path}/gone", "--failover", f"{tmp_path}/spare", code=1)
    where, failed, *pending = out.splitlines()
    assert ", temporarily (4 B, " in where
    assert "not mounted?" in failed
    assert [line.split(": ")[1].split(" ")[0] for line in pending] == ["replicate", "remove"]


def test_one_line_for_each_of_several_files(cli: Cli, file: Path, tmp_path: Path) -> None:
    other = file.with_name("y.dat")
    other.write_text("")
    lines = cli("send", str(file), str(other), "--to", f"{tmp_path}/east", "--json").splitlines()
    assert [json.loads(line)["at"]["path"] for line in lines] == ["x.dat", "y.dat"]


def test_no_store_takes_it(cli: Cli, file: Path, tmp_path: Path) -> None:
    out = cli("send", str(file), "--to", f"{tmp_path}/gone", code=4)
    assert "not mounted?" in out
    assert "no store accepted it" in cli.err


def test_names_of_registered_stores_and_folders(cli: Cli, file: Path, tmp_path: Path) -> None:
    with Client(cli.home.path) as client:
        client.stores.add("east", str(tmp_path / "east"))
    cli("send", str(file), "--to", "east:2024/", "--name", "y")
    assert (tmp_path / "east" / "2024" / "y").read_text() == "data"


def test_dry_run_changes_nothing(cli: Cli, file: Path, tmp_path: Path) -> None:
    (tmp_path / "west" / "x.dat").write_text("")
    found = json.loads(cli("send", str(file), "--to", f"{tmp_path}/gone,{tmp_path}/west", "--failover",
                           f"{tmp_path}/spare", "--dry-run", "--json"))
    assert "not mounted" in found["to"][0]["state"]
    assert [found["to"][1]["state"], found["failover"][0]["state"]] == ["occupied", "ready"]
    assert os.listdir(tmp_path / "spare") == []
    with Client(cli.home.path) as client:
        assert client.requests() == []


@pytest.mark.parametrize(("args", "says"), [
    (["x", "y", "--to", "s", "--name", "n"], "one file"),
    (["FILE", "--to", "nowhere"], "no such store: nowhere"),
    (["FILE", "--to", "/tmp", "--register", "ftp://x"], "catalog ftp://x"),
    (["/nonexistent/file", "--to", "/tmp"], "No such file"),
    (["FILE"], "--to"),
])
def test_what_is_wrong_is_one_line(cli: Cli, file: Path, args: list[str], says: str) -> None:
    assert says in cli.fails("send", *(str(file) if arg == "FILE" else arg for arg in args), code=2)


def test_publish(cli: Cli, file: Path, tmp_path: Path) -> None:
    assert "nothing is marked" in cli("publish", "status")
    with Client(cli.home.path) as client:
        client.submit(str(file), str(tmp_path / "east" / "x.dat"), register=f"jsonl:{tmp_path}/c.jsonl")
        with client.transfers.atomic() as db:
            db.execute("UPDATE transfers SET state='DONE'")
    (status,) = json.loads(cli("publish", "status", "--json"))
    assert (status["coming"], status["NEW"]) == (0, 1)
    assert "1 DONE" in cli("publish", "once", "--force")
    assert "nothing is due" in cli("publish", "once")
    assert json.loads((tmp_path / "c.jsonl").read_text())["path"].endswith("east/x.dat")
    assert "0 publications" in cli("publish", "retry")
    assert "nothing failed in these requests" in cli.fails("publish", "retry", "abc", code=2)


def test_a_catalog_that_takes_nothing_ends_with_1(cli: Cli, file: Path, tmp_path: Path) -> None:
    with Client(cli.home.path) as client:
        client.submit(str(file), str(tmp_path / "east" / "x.dat"), register="command:false")
        with client.transfers.atomic() as db:
            db.execute("UPDATE transfers SET state='DONE'")
    assert json.loads(cli("publish", "once", "--force", "--json", code=1)) == {"DONE": 0, "RETRY": 1, "FAILED": 0}
    assert "exited with status 1" in cli("publish", "status")


def test_when_something_is_due_is_a_setting_of_the_node(cli: Cli, file: Path, tmp_path: Path) -> None:
    transfers = Transfers(cli.home.path)
    catalog = f"jsonl:{tmp_path}/catalog"
    Intake(transfers).submit(NewRequest("queue", "ann", [NewOperation("copy", [
        NewTransfer("a", name, "b", name, 1, catalog=catalog) for name in (b"arrived", b"to come")])]))
    first, _ = transfers.page()
    transfers.advance([first.id], TransferState.NEW, TransferState.DONE)
    transfers.close()
    assert cli("publish", "once") == "nothing is due\n"
    cli("config", "--site", "set", "publish-min-files", "1")
    assert cli("publish", "once", "-o", "publish-min-files=2") == "nothing is due\n"
    assert cli("publish", "once", "--dry-run") == f"would register 1 entries in {catalog}\n"
    assert cli("publish", "once") == "1 DONE\n"
