"""`gsync store` and `gsync queue`, as a person and a script use them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer
from gsync.transfer.queue.transfers import Transfers
from lab.cli import Cli


@pytest.fixture
def place(tmp_path: Path, cli: Cli) -> Path:
    """A directory with stores a and b in it."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cli("store", "add", name, str(tmp_path / name))
    return tmp_path


def shown(cli: Cli, *args: str, code: int = 0) -> Any:
    return json.loads(cli(*args, "--json", code=code))


# store

def test_stores_are_added_listed_and_removed(cli: Cli, place: Path) -> None:
    (place / "v").mkdir()
    assert cli("store", "add", "v", f"tar://{place}/v", "-o", "tar-size=1G") == f"store v is tar://{place}/v\n"
    assert [(s["name"], s["kind"]) for s in shown(cli, "store", "list")] == [("a", "dir"), ("b", "dir"), ("v", "tar")]
    assert "reachable" in cli("store", "check", "v")
    assert cli("store", "remove", "v", "--yes") == "store v: removed\n"
    assert "no such store: v" in cli.fails("store", "check", "v", code=2)


@pytest.mark.parametrize(("args", "why"), [
    (["x", "http://h/x"], "not a store URL"), (["x/y", "/tmp"], "x/y"), (["a", "/tmp"], "the name is taken"),
    (["x", "/tmp", "-o", "colour=red"], "no such option: colour"),
    (["x", "/tmp", "-o", "colour"], "expected KEY=VALUE"),
    (["x", "tar:///tmp"], "neither an empty directory nor a vault"),
    (["x", "tar:///nowhere/v"], "create the directory first")])
def test_what_is_wrong_with_a_store_is_one_line(cli: Cli, place: Path, args: list[str], why: str) -> None:
    assert why in cli.fails("store", "add", *args, code=2)
    assert [s["name"] for s in shown(cli, "store", "list")] == ["a", "b"]


def test_a_store_that_cannot_be_reached_is_exit_code_4(cli: Cli, place: Path) -> None:
    os.rename(place / "b", place / "away")
    assert "not mounted?" in cli.fails("store", "check", "b", code=4)
    found = shown(cli, "store", "check", "b", code=4)
    assert (found["reachable"], found["free"]) == (False, None)


def test_bans(cli: Cli, place: Path) -> None:
    said = cli("store", "ban", "a", "--for", "2h", "--reason", "dust")
    assert re.match(r"store a: banned until 20..-..-..T.*: dust", said)
    assert "banned until allowed" in cli("store", "ban", "a")
    assert "banned" in cli("store", "list")
    assert "banned" in cli("store", "check", "a")  # a person's ban holds
    assert cli("store", "allow", "a") == "store a: ok\n"
    assert "not a duration" in cli.fails("store", "ban", "a", "--for", "soon", code=2)
    assert "give the unit of 30" in cli.fails("store", "ban", "a", "--for", "30", code=2)


# queue

def test_a_file_is_queued_shown_and_done(cli: Cli, place: Path) -> None:
    (place / "a" / "x").write_text("hello")
    found = shown(cli, "queue", "submit", "a:x", "b:y", "--owner", "ann")
    assert found["files"] == 1
    assert f"{found['id']}" in cli("queue", "list")
    assert cli("queue", "run", "--once", "-o", "log-level=ERROR") == "1 done, 0 failed\n"
    request = shown(cli, "queue", "show", found["id"][:6])
    assert (request["state"], request["owner"], request["transfers"]) == ("DONE", "ann", {"DONE": 1})
    assert (place / "b" / "y").read_text() == "hello"


def test_a_tree_is_brought_whole_with_the_times_of_its_directories(cli: Cli, place: Path) -> None:
    deep = place / "a" / "t" / "d e\n" / "f"
    deep.mkdir(parents=True)
    (deep / "x").write_text("1")
    (place / "a" / "t" / "empty").mkdir(mode=0o750)
    os.symlink("d e\n/f/x", place / "a" / "t" / "l")
    for path in (deep, deep.parent, place / "a" / "t"):
        os.utime(path, ns=(5, 1_500_000_000_000_000_005))
    out = cli("queue", "submit", "a:t", str(place / "b" / "copy"), "--wait")
    assert "state:       DONE" in out
    assert (place / "b" / "copy" / "d e\n" / "f" / "x").read_text() == "1"
    assert os.readlink(place / "b" / "copy" / "l") == "d e\n/f/x"
    for path in (place / "b" / "copy", place / "b" / "copy" / "d e\n", place / "b" / "copy" / "d e\n" / "f"):
        assert os.stat(path).st_mtime_ns == 1_500_000_000_000_000_005
    assert os.stat(place / "b" / "copy" / "empty").st_mode & 0o777 == 0o750


def test_what_was_put_in_within_a_time(cli: Cli, place: Path) -> None:
    (place / "a" / "x").write_text("hello")
    ident = shown(cli, "queue", "submit", "a:x", "b:y")["id"]
    for time, found in (("1h", True), ("2000-01-01", True), ("2100-01-01T00:00:00Z", False)):
        assert [r["id"] for r in shown(cli, "queue", "list", "--since", time)] == [ident] * found
        assert len(shown(cli, "queue", "list", "--transfers", "--until", time)) == (not found)
    assert "is not a time such as 2h" in cli.fails("queue", "list", "--since", "soon", code=2)


def test_a_dry_run_queues_nothing(cli: Cli, place: Path) -> None:
    (place / "a" / "x").write_text("hello")
    assert "would copy 1 files, 5 B, from a:x to b:x" in cli("queue", "submit", "a:x", "b:x", "--dry-run")
    assert cli("queue", "list") == f"nothing is queued in {cli.home.path}\n"


def test_what_failed_says_why_and_is_tried_again(cli: Cli, place: Path) -> None:
    (place / "a" / "x").write_text("hello")
    (place / "b" / "x").write_text("precious")
    out = cli("queue", "submit", "a:x", "b:x", "--wait", code=1)
    assert "FAILED" in out
    assert "store b: x exists and differs; gsync queue submit --replace" in out
    (ident,) = [r["id"] for r in shown(cli, "queue", "list", "--in", "failed")]
    (place / "b" / "x").unlink()
    assert cli("queue", "retry", ident, "--dry-run") == "would retry 1 transfers\n"
    assert cli("queue", "retry", ident) == "1 transfers will be retried\n"
    cli("queue", "run", "--once", "-o", "log-level=ERROR")
    assert shown(cli, "queue", "show", ident)["state"] == "DONE"


def test_what_is_moved_goes_at_its_source_once_all_has_arrived(cli: Cli, place: Path) -> None:
    (place / "a" / "d" / "e").mkdir(parents=True)
    for name in ("d/x", "d/e/y"):
        (place / "a" / name).write_text(name)
    (place / "a" / "d" / "link").symlink_to("x")
    (place / "b" / "d").mkdir()
    (place / "b" / "d" / "x").write_text("another one")
    cli("queue", "submit", "a:d", "b:d", "--move", "--wait", code=1)
    assert sorted(os.listdir(place / "a" / "d")) == ["e", "link", "x"]  # as one did not arrive
    (place / "b" / "d" / "x").unlink()
    cli("queue", "submit", "a:d", "b:d", "--move")
    assert cli("queue", "run", "--once", "-o", "log-level=ERROR") == "12 done, 0 failed\n"
    assert os.listdir(place / "a") == []
    assert (place / "b" / "d" / "e" / "y").read_text() == "d/e/y"


def test_a_replica_is_taken_where_the_source_is_corrupt(cli: Cli, place: Path) -> None:
    (place / "v").mkdir()
    cli("store", "add", "v", f"tar://{place}/v")
    (place / "a" / "d").mkdir()
    (place / "a" / "d" / "x").write_text("precious")
    cli("queue", "submit", "a:d", "v:", "--wait")
    (tar,) = [path for path in (place / "v").glob("*.tar") if b"precious" in path.read_bytes()]
    tar.write_bytes(tar.read_bytes().replace(b"precious", b"Precious"))
    cli("queue", "submit", "v:", "b:copy", "--replica", "a:d")
    cli("queue", "run", "--once", "-o", "log-level=ERROR", "-o", "queue-retry-pause=0")
    assert (place / "b" / "copy" / "x").read_text() == "precious"


def test_a_store_that_is_read_only_is_refused_at_once(cli: Cli, place: Path, tmp_path: Path) -> None:
    (place / "a" / "x").write_text("hello")
    cli("store", "add", "kept", str(place / "b"), "--read-only")
    for command in (["queue", "submit", "a:x", "kept:x"], ["queue", "submit", "kept:y", "a:y", "--move"],
                    ["archive", "create", str(place / "a"), "--vault", "kept"]):
        assert cli.fails(*command, code=4) == "store kept is read-only"


def test_a_bare_name_of_a_store_is_no_file_to_be_made_here(cli: Cli, place: Path) -> None:
    assert "'b' is a store; write b:PATH for a path in it" in cli.fails("backup", str(place / "a"), "b", code=2)


def test_kill_by_request_owner_link_and_number(cli: Cli, place: Path) -> None:
    (place / "a" / "x").write_text("hello")
    ids = [shown(cli, "queue", "submit", "a:x", f"b:{n}", "--owner", owner)["id"]
           for n, owner in enumerate(["ann", "bob", "bob", "eve"])]
    numbers = [t["id"] for t in shown(cli, "queue", "list", "--transfers")]
    assert cli("queue", "kill", ids[0], "--dry-run") == "would kill 1 transfers\n"
    assert "--yes" in cli.fails("queue", "kill", ids[0], code=2)
    assert cli("queue", "kill", ids[0], "--yes") == "1 transfers killed\n"
    assert cli("queue", "kill", "--owner", "bob", "--link", "b,a", "--yes") == "0 transfers killed\n"
    assert cli("queue", "kill", "--owner", "bob", "--yes") == "2 transfers killed\n"
    assert cli("queue", "kill", str(numbers[3]), "--yes") == "1 transfers killed\n"
    assert [t["state"] for t in shown(cli, "queue", "list", "--link", ",b")] == ["KILLED"] * 4
    cli("queue", "run", "--once", "-o", "log-level=ERROR")
    assert os.listdir(place / "b") == []


@pytest.mark.parametrize(("args", "why"), [
    (["show", "zzz"], "no such request"), (["kill", "--yes"], "give request ids, --owner or --link"),
    (["retry"], "give request ids, --owner or --link"),
    (["list", "--in", "sleeping"], "unknown state: "), (["list", "--link", "ab"], "FROM,TO"),
    (["submit", "a:nothing", "b:x"], "no such file or directory"), (["submit", "c:x", "b:x"], "no such store: c"),
    (["run", "-o", "queue-retry-pause=long"], "not a duration")])
def test_what_is_wrong_is_one_line(cli: Cli, place: Path, args: list[str], why: str) -> None:
    assert why in cli.fails("queue", *args, code=2)


def test_names_that_are_not_utf_8(cli: Cli, place: Path) -> None:
    name = os.fsdecode(b"\xff\n")
    (place / "a" / name).write_text("1")
    out = cli("queue", "submit", f"a:{name}", f"b:{name}", "--wait")
    assert "a:\\xff\\n" in out
    (row,) = shown(cli, "queue", "list", "--transfers")
    assert row["to_path"]["path_b64"] == "/wo="


@pytest.mark.parametrize("command", [
    "queue list", "queue list --json", "queue retry --owner ann", "queue kill --owner ann --yes",
    "queue submit {dir} {dir}/copy --dry-run", "send {dir}/d.ini --to {dir} --dry-run", "store list",
    "archive list", "archive create {dir} --vault {dir} --dry-run", "backup {dir}/in {dir}/out --dry-run",
    "publish status", "publish once --dry-run", "deliver status -c {dir}/d.ini",
    "deliver once -c {dir}/d.ini --dry-run"])
def test_who_only_looks_makes_no_state_folder(cli: Cli, tmp_path: Path, command: str) -> None:
    for name in ("dir", "dir/in", "dir/out"):
        (tmp_path / name).mkdir()
    (tmp_path / "dir" / "d.ini").write_text(f"[s]\nsource = {tmp_path}/dir/in\ndestination = {tmp_path}/dir/out\n"
                                            f"staging = {tmp_path}/dir/stage\n")
    cli(*command.format(dir=tmp_path / "dir").split())
    assert os.listdir(tmp_path) == ["dir"]
    assert not (tmp_path / "dir" / "stage").exists()


def test_summary_counts_what_is_open_and_shows_who_is_left_alone(cli: Cli, place: Path) -> None:
    (place / "a" / "x").touch()
    cli("queue", "submit", "a:x", "b:x", "--wait")
    cli("queue", "submit", "a:x", "b:y", "--owner", "ann")
    cli("store", "ban", "b", "--reason", "cleaning")
    found = shown(cli, "queue", "summary")
    assert found["states"] == {"DONE": 1, "NEW": 1}
    assert found["work"] == [{"name": "copy", "states": {"NEW": 1}}]
    assert found["owners"] == [{"name": "ann", "states": {"NEW": 1}}]
    assert found["links"] == [{"name": "a,b", "states": {"NEW": 1}}]
    text = cli("queue", "summary")
    assert text.startswith("1 DONE 1 NEW\n")
    assert "banned until allowed: cleaning" in text
    assert "gsync queue kill --link ,b" in cli.fails("store", "remove", "b", "--yes", code=2)


def test_a_request_is_listed_with_the_transfers_of_all_its_operations(cli: Cli, place: Path) -> None:
    (place / "a" / "d").mkdir()
    (place / "a" / "d" / "x").touch()
    cli("queue", "submit", "a:d", "b:d", "--wait")
    cli("queue", "submit", "a:d", "b:e", "--owner", "ann", "--label", "job 17")
    assert len(shown(cli, "queue", "list", "--label", "17", "--transfers")) == 3
    assert [r["label"] for r in shown(cli, "queue", "list", "--label", "b 1")] == ["job 17"]
    assert cli("queue", "list", "--label", "18") == "no such requests\n"
    counts = [{"DONE": 3}, {"NEW": 1, "QUEUED": 2}]
    for limit in ("0", "2"):
        assert [r["transfers"] for r in shown(cli, "queue", "list", "--limit", limit)] == counts
        assert "1 NEW 2 QUEUED" in cli("queue", "list", "--limit", limit)
    assert [r["transfers"] for r in shown(cli, "queue", "list", "--owner", "ann", "--limit", "1")] == counts[1:]


@pytest.mark.slow
def test_a_hundred_thousand_transfers_are_listed_and_filtered(cli: Cli, tmp_path: Path) -> None:
    db = Transfers(cli.home.path)
    for owner in ("ann", "bob"):
        Intake(db).submit(NewRequest("queue", owner, [NewOperation("copy", [
            NewTransfer("a", b"x%d" % n, "b", b"y%d" % n, 5) for n in range(50_000)])]))
    db.close()
    assert len(shown(cli, "queue", "list", "--transfers", "--limit", "0")) == 100_000
    assert len(shown(cli, "queue", "list", "--transfers", "--owner", "ann", "--in", "NEW", "--limit", "0")) == 50_000
    assert cli("queue", "list", "--transfers", "--limit", "0").count("\n") > 100_000
    assert [r["transfers"] for r in shown(cli, "queue", "list")] == [{"NEW": 50_000}] * 2
    text = cli("queue", "list", "--transfers", "--limit", "250", "--in", "NEW").splitlines()
    assert text[0].split() == ["ID", "REQUEST", "STATE", "TRIES", "FROM", "TO", "WHY"]
    assert [line.split()[0] for line in text[1:]] == [str(n) for n in range(99_751, 100_001)]


# completion

def test_completion(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "a" / "x").write_text("hello")
    ident = shown(cli, "queue", "submit", "a:x", "b:x")["id"]

    def offered(*words: str) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setenv("_GSYNC_COMPLETE", "complete_bash")
            patch.setenv("COMP_WORDS", "\n".join(["gsync", *words]))
            patch.setenv("COMP_CWORD", str(len(words)))
            return [line for line in cli().split("\n") if line]

    assert offered("store", "check", "") == ["a", "b"]
    assert offered("store", "b") == ["ban"]
    assert offered("queue", "kill", "") == [ident]
    assert offered("queue", "sh") == ["show"]
