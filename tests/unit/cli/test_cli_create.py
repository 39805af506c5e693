"""`gsync create` and `gsync delete` in this process, with slaves on this host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsync.base.process import Lock
from gsync.engine.ledger import Ledger
from gsync.link.client import SlaveClient
from gsync.link.link import parse_slave
from gsync.link.local import LocalLink
from gsync.session import config
from gsync.session.control import Wanted, read_wanted, write_wanted
from gsync.session.session import Session, SessionHome
from lab.cli import Cli
from lab.images import FsImage


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.mkdir()
    return path


def the_session(cli: Cli) -> Session:
    (session,) = SessionHome(cli.home).list()
    return session


def findings(cli: Cli, *args: object, code: int) -> list[str]:
    """What create says of these arguments, "level: text" each; the session is made if the code is 0."""
    answer: dict[str, Any] = json.loads(cli("create", *map(str, args), "--json", code=code))
    assert answer["created"] is (code == 0)
    return [f"{each['level']}: {each['text']}" for each in answer["findings"]]


class TestCreate:
    def test_makes_volume_and_session_and_says_what_is_next(self, cli: Cli, tree: Path, copy: Path) -> None:
        out = cli("create", str(tree), str(copy), "-o", "sync-jobs=3", "-o", "exclude=*.o", "-o", "exclude=/build/")
        session = the_session(cli)
        assert out == f"session {session.name} created: {tree} to {copy}\nnext: gsync start {session.name}\n"
        assert cli.home.get(session.volume).path == str(tree)
        assert (session.options.sync_jobs, session.options.exclude) == (3, ("*.o", "/build/"))
        assert read_wanted(session) is Wanted.CREATED
        assert os.listdir(copy) == []

    def test_a_name_and_a_volume(self, cli: Cli, tree: Path, copy: Path) -> None:
        cli("volume", "add", "photos", str(tree))
        cli("create", "photos", str(copy), "--name", "backup", "--adopt")
        session = the_session(cli)
        assert (session.name, session.volume, session.options.adopt) == ("backup", "photos", True)

    @pytest.mark.parametrize(
        ("args", "complaint"),
        [
            (["nowhere", "{copy}"], "master nowhere: no such directory or volume"),
            (["{tree}", "relative:path"], "the path must begin with /"),
            (["{tree}", "{copy}", "-o", "sync-jobs"], "-o sync-jobs: expected OPTION=VALUE"),
            (["{tree}", "{copy}", "-o", "sync-jobs=99"], "sync-jobs: '99'"),
            (["{tree}", "{copy}", "-o", "sync-job=9"], "sync-jobs?"),
            (["{tree}", "{copy}", "-o", "use-meta-volume=true"], "gsync config --site set use-meta-volume true"),
            (["{tree}", "{copy}", "--name", "a/b"], "session 'a/b': a name is made of"),
            (["{tree}", "{copy}", "--accept-host-key", "SHA256:x"], "is on this host"),
        ],
    )
    def test_bad_usage(self, cli: Cli, tree: Path, copy: Path, args: list[str], complaint: str) -> None:
        assert complaint in cli.fails("create", *(a.format(tree=tree, copy=copy) for a in args), code=2)
        assert not os.path.exists(cli.home.path + "/volumes")

    def test_one_that_is_there_is_told_how_to_go_on(self, cli: Cli, tree: Path, copy: Path) -> None:
        cli("create", str(tree), str(copy))
        line = cli.fails("create", str(tree), str(copy) + "/", "--name", "other", code=2)
        assert f"gsync start {the_session(cli).name}" in line

    def test_a_name_that_is_taken(self, cli: Cli, tree: Path, copy: Path) -> None:
        cli("create", str(tree), str(copy), "--name", "x")
        assert "already exists" in cli.fails("create", str(tree), f"{copy}2", "--name", "x", code=2)

    def test_when_it_refuses_no_volume_is_left(self, cli: Cli, tree: Path, copy: Path) -> None:
        (copy / "foreign").touch()
        cli("create", str(tree), str(copy), code=4)
        assert cli.home.list() == []
        assert SessionHome(cli.home).list() == []

    def test_a_foreign_slave_cannot_be_forced(self, cli: Cli, tree: Path, copy: Path) -> None:
        (copy / "foreign").touch()
        cli("create", str(tree), str(copy), "--force", code=4)
        assert cli.err.endswith("session not created, see the errors above\n")
        assert any("deletes what the master does not have" in line
                   for line in findings(cli, tree, copy, "--adopt", code=0))

    def test_a_slave_that_is_missing_is_made_later(self, cli: Cli, tree: Path, copy: Path) -> None:
        assert findings(cli, tree, copy / "new", code=0) == [
            f"info: slave {copy}/new: the first start creates the directory"]
        assert not (copy / "new").exists()
        (line,) = findings(cli, tree, copy / "a" / "b", code=4)
        assert f"no such directory: {copy}/a/b" in line

    @pytest.mark.parametrize("slave", ["tree/sub", ".", "tree"])
    def test_trees_that_lie_in_each_other(self, cli: Cli, tree: Path, tmp_path: Path, slave: str) -> None:
        (line,) = findings(cli, tree, tmp_path / slave, code=2)
        assert line.startswith("error: ")
        assert "lies inside" in line

    def test_the_slave_of_another_volume(self, cli: Cli, tree: Path, copy: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        cli("volume", "add", "other", str(tmp_path / "other"))
        used(cli, "other", copy)
        (line,) = findings(cli, tree, copy, "--force", "--adopt", code=4)
        assert "it is the slave of another volume, other" in line

    def test_a_slave_where_somebody_works(self, cli: Cli, tree: Path, copy: Path) -> None:
        cli("volume", "add", "photos", str(tree))
        link = LocalLink(parse_slave(str(copy)))
        client = SlaveClient(link)
        try:
            client.hello(cli.home.get("photos").uuid, "photos", "another", 1)
            said = findings(cli, "photos", copy, code=4)
        finally:
            client.close()
        assert any("session another is active there" in line for line in said)
        assert any("resumes from there" in line for line in findings(cli, "photos", copy, code=0))

    def test_only_a_volume_is_taken_over_from_gsyncd(self, cli: Cli, tree: Path, copy: Path) -> None:
        said = findings(cli, tree, copy, "--from-gsyncd", code=2)
        assert said[0].startswith("error: --from-gsyncd needs a GlusterFS volume as master and as slave")

    def test_what_was_left_by_an_unfinished_one_does_no_harm(self, cli: Cli, tree: Path, copy: Path) -> None:
        folder = Path(cli.home.path, "sessions", "x")
        folder.mkdir(parents=True)
        (folder / "gsync.conf").write_text("[gsync]\nsync-jobs = 7\n")
        cli("create", str(tree), str(copy), "--name", "x", "-o", "nice=3")
        options = the_session(cli).options
        assert (options.sync_jobs, options.nice) == (2, 3)

    @pytest.mark.root
    def test_a_read_only_file_system(self, cli: Cli, tree: Path, tmp_path: Path) -> None:
        with FsImage(tmp_path / "image", 100 << 20, "tmpfs") as image:
            image.remount(read_only=True)
            (line,) = findings(cli, tree, image.path, code=4)
            assert "mounted read-only" in line


def used(cli: Cli, volume: str, slave: Path, stime: int = 5) -> None:
    """The slave has been in step with the volume at stime."""
    client = SlaveClient(LocalLink(parse_slave(str(slave))))
    try:
        client.hello(cli.home.get(volume).uuid, volume, "s", 1)
        client.commit(stime, stime, 1, clear=True)
    finally:
        client.close()


class TestDelete:
    @pytest.fixture
    def session(self, cli: Cli, tree: Path, copy: Path) -> Session:
        cli("create", str(tree), str(copy))
        return the_session(cli)

    def test_asks_first(self, cli: Cli, session: Session) -> None:
        assert "not deleted; confirm, or use --yes" in cli.fails("delete", code=2)
        assert cli("delete", "--yes") == f"{session.name}: deleted\n"
        assert SessionHome(cli.home).list() == []
        assert cli.home.list() != []

    def test_all(self, cli: Cli, session: Session, tree: Path, copy: Path) -> None:
        cli("create", str(tree), f"{copy}2")
        assert "name a session: " in cli.fails("delete", "--yes", code=2)
        assert len(json.loads(cli("delete", "--all", "--yes", "--json"))) == 2
        assert json.loads(cli("delete", "--all", "--yes", "--json")) == []

    @pytest.mark.parametrize("wanted", [Wanted.STARTED, Wanted.PAUSED])
    def test_what_is_started_is_refused(self, cli: Cli, session: Session, wanted: Wanted) -> None:
        write_wanted(session, wanted)
        assert f"is {wanted}; stop it first with gsync stop {session.name}" in cli.fails("delete", "--yes", code=3)

    def test_what_runs_is_refused_with_its_pid(self, cli: Cli, session: Session) -> None:
        for lock, text in [(session.run_lock, "`gsync run` is running it"), (session.worker_lock, "is still stopping")]:
            with Lock(lock, "test"):
                line = cli.fails("delete", "--yes", code=3)
            assert text in line
            assert f"pid {os.getpid()}" in line
        assert SessionHome(cli.home).list() != []

    def test_a_key_is_not_left_and_its_line_is_remembered(self, cli: Cli, session: Session) -> None:
        Path(session.key).write_text("secret")
        assert "authorized_keys" in cli("delete", "--yes")
        assert list(Path(cli.home.path).rglob("key")) == []

    def test_reset_sync_time(self, cli: Cli, session: Session, tree: Path, copy: Path) -> None:
        used(cli, session.volume, copy)
        Ledger(session.ledger_db).close()
        cli("delete", "--yes", "--reset-sync-time")
        client = SlaveClient(LocalLink(parse_slave(str(copy))))
        try:
            hello = client.hello(cli.home.get(session.volume).uuid, session.volume, "s", 5)
        finally:
            client.close()
        assert (hello.stime, hello.entry_stime) == (None, None)
        cli("create", str(tree), str(copy))
        assert Path(the_session(cli).epoch).read_text() == "1\n"

    def test_reset_of_a_slave_that_was_never_reached(self, cli: Cli, session: Session, copy: Path) -> None:
        cli("delete", "--yes", "--reset-sync-time")
        assert os.listdir(copy) == []

    def test_a_slave_that_cannot_be_asked_to_forget_keeps_the_session(self, cli: Cli, session: Session, copy: Path
                                                                      ) -> None:
        used(cli, session.volume, copy)
        (copy / ".gsync" / "identity").write_text("{")
        assert "damaged" in cli.fails("delete", "--yes", "--reset-sync-time", code=4)
        assert the_session(cli) == session


def test_settings_of_the_node_hold_for_a_new_session(cli: Cli, tree: Path, copy: Path) -> None:
    config.set_value(config.node_path(cli.home.path), "nice", "7")
    cli("create", str(tree), str(copy))
    assert the_session(cli).options.nice == 7


@pytest.fixture(autouse=True)
def _no_system_conf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", "/nonexistent")
    yield
