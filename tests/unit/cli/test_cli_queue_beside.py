"""gsync queue: what replication could not sync beside the rest, publication, and AsyncStageOut's reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsync.base.model import gfid_str
from gsync.engine.ledger import Failure, Ledger
from gsync.session.session import SessionHome
from lab.cli import Cli

GFID = b"g" * 16


@pytest.fixture
def failing(cli: Cli, tree: Path) -> str:
    """A session with two failures; the id of its request."""
    cli.home.add("photos", str(tree))
    sessions = SessionHome(cli.home)
    session = sessions.find_or_new("photos", "h:/alpha", "alpha")
    sessions.save(session)
    ledger = Ledger(session.ledger_db)
    for gfid in (GFID, b"h" * 16):
        ledger.record(Failure("data", gfid, None, b"/a/" + gfid[:1] + b"\xff", 13, "Permission denied"))
    ledger.close()
    return "session:alpha"


def test_replications_failures_stand_beside_the_rest(cli: Cli, failing: str, tree: Path) -> None:
    (tree / "x").write_text("x")
    cli("queue", "submit", str(tree / "x"), str(tree / "y"))
    rows = json.loads(cli("queue", "list", "--json"))
    assert [(row["kind"], row["state"]) for row in rows] == [("queue", "NEW"), ("failure", "RETRY")]
    assert rows[1]["transfers"] == {"RETRY": 2}
    assert [row["id"] for row in json.loads(cli("queue", "list", "--kind", "failure", "--json"))] == [failing]
    assert json.loads(cli("queue", "list", "--in", "FAILED", "--json")) == []
    assert "photos → h:/alpha" in cli("queue", "list")


def test_shown_retried_and_dropped_one_by_one(cli: Cli, failing: str) -> None:
    shown = json.loads(cli("queue", "show", failing, "--json", code=1))
    assert [row["reason"] for row in shown["rows"]] == ["Permission denied"] * 2
    assert "/a/g\\xff" in cli("queue", "show", failing, code=1)
    assert "2 transfers will be retried" in cli("queue", "retry", failing)
    assert "one by one" in cli.fails("queue", "kill", failing, "--yes", code=2)
    assert "would kill 1" in cli("queue", "kill", f"{failing}/{gfid_str(GFID)}", "--dry-run")
    assert "1 transfers killed" in cli("queue", "kill", f"{failing}/{gfid_str(GFID)}", "--yes")
    assert len(json.loads(cli("queue", "show", failing, "--json", code=1))["rows"]) == 1
    assert "no such session: nosuch" in cli.fails("queue", "show", "session:nosuch", code=2)


def test_submitted_for_a_catalog_and_published(cli: Cli, tree: Path) -> None:
    (tree / "d").mkdir()
    (tree / "d" / "x").write_text("x")
    cli("queue", "submit", str(tree / "d"), str(tree / "e"), "--register", f"jsonl:{tree}/c", "--wait")
    assert "1 DONE" in cli("publish", "once")
    (entry,) = map(json.loads, (tree / "c").read_text().splitlines())
    assert (entry["size"], entry["path"][-3:], entry["checksum"][:7]) == (1, "e/x", "sha256:")
    assert "catalog ftp://x" in cli.fails("queue", "submit", str(tree / "d"), str(tree / "f"), "--register", "ftp://x",
                                          code=2)


def test_reports_for_aso_users(cli: Cli, tree: Path) -> None:
    (tree / "x").write_text("x")
    cli("queue", "submit", str(tree / "x"), str(tree / "y"), "--wait", "--owner", "ann")
    assert "1 files" in cli("queue", "report", str(tree / "outbox"))
    (path,) = (tree / "outbox" / "ann").glob("Reporter-*.json")
    assert json.loads(path.read_text())["transferStatus"] == ["done"]
    assert json.loads(cli("queue", "report", str(tree / "outbox"), "--json")) == {"files": 0}
