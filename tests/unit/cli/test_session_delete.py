"""What a deleted session leaves behind, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.base.model import ROOT_GFID
from gsync.engine.lease import LocalLease
from gsync.engine.ledger import Failure, Ledger
from gsync.engine.worklist import ChangelogDB
from gsync.session import config
from gsync.session.control import Wanted, read_wanted, write_wanted
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(str(tmp_path / "home"))
    for name in ("photos", "films"):
        (tmp_path / name).mkdir()
        home.add(name, str(tmp_path / name))
    return home


def used(home: Home, name: str | None = None, slave: str = "h:/copy") -> Session:
    """A session that has worked: epoch 3, a failure, a pattern, a key, a log."""
    sessions = SessionHome(home)
    session = sessions.find_or_new("photos", slave, name)
    sessions.save(session, {"sync-jobs": "3"})
    lease = LocalLease(session.epoch)
    assert [lease.take() for _ in range(3)] == [1, 2, 3]
    ledger = Ledger(session.ledger_db)
    ledger.record(Failure("name", None, (ROOT_GFID, b"x"), b"x", 13, "denied"))
    ledger.close()
    db = ChangelogDB(session.changelog_db)
    db.set_fact("patterns", '["*.o"]')
    db.close()
    write_wanted(session, Wanted.STOPPED)
    Path(session.key).write_text("secret")
    Path(session.log).write_text("line\n")
    return session


@pytest.mark.parametrize("name", [None, "other"])
def test_a_session_that_is_made_again_goes_on(home: Home, name: str | None) -> None:
    sessions = SessionHome(home)
    before = used(home)
    sessions.remove(before)
    assert sessions.names() == []
    with pytest.raises(UsageError, match="no such session: "):
        sessions.get(before.name)

    again = sessions.find_or_new("photos", "h:/copy", name)
    sessions.save(again, {"sync-jobs": "5"})
    assert sessions.list() == [sessions.get(again.name)]
    assert LocalLease(again.epoch).take() == 4
    assert Ledger(again.ledger_db).count() == 1
    assert ChangelogDB(again.changelog_db).fact("patterns") == '["*.o"]'
    assert read_wanted(again) is Wanted.CREATED
    assert sessions.get(again.name).options.sync_jobs == 5
    assert not Path(again.key).exists()
    assert not Path(again.log).exists()


def test_forgotten_it_begins_anew_but_for_the_epoch(home: Home) -> None:
    sessions = SessionHome(home)
    sessions.remove(used(home), forget=True)
    again = sessions.find_or_new("photos", "h:/copy")
    sessions.save(again)
    assert LocalLease(again.epoch).take() == 4
    assert Ledger(again.ledger_db).count() == 0
    assert ChangelogDB(again.changelog_db).fact("patterns") is None


def test_what_remains_is_no_other_sessions(home: Home) -> None:
    sessions = SessionHome(home)
    sessions.remove(used(home, "same"))
    for volume, slave in [("films", "h:/copy"), ("photos", "h:/elsewhere")]:
        other = sessions.find_or_new(volume, slave, "same")
        sessions.save(other)
        assert LocalLease(other.epoch).take() == 1
        sessions.remove(other)
    again = sessions.find_or_new("photos", "h:/copy", "same")
    sessions.save(again)
    assert LocalLease(again.epoch).take() == 4


def test_twice_deleted_the_last_one_counts(home: Home) -> None:
    sessions = SessionHome(home)
    sessions.remove(used(home))
    again = sessions.find_or_new("photos", "h:/copy")
    sessions.save(again)
    LocalLease(again.epoch).take()
    sessions.remove(again)
    third = sessions.find_or_new("photos", "h:/copy")
    sessions.save(third)
    assert LocalLease(third.epoch).take() == 5


def test_a_volume_that_is_made_anew_has_nothing_to_go_on_from(home: Home, tmp_path: Path) -> None:
    sessions = SessionHome(home)
    sessions.remove(used(home))
    home.remove("photos")
    home.add("photos", str(tmp_path / "photos"))
    again = sessions.find_or_new("photos", "h:/copy")
    sessions.save(again)
    assert LocalLease(again.epoch).take() == 1


def test_a_session_whose_volume_is_gone_can_be_deleted(home: Home) -> None:
    session = used(home)
    home.remove("photos")
    SessionHome(home).remove(session)
    assert SessionHome(home).names() == []


def test_a_damaged_volume_does_not_cost_the_epoch(home: Home) -> None:
    session = used(home)
    Path(home.path, "volumes", "photos", "volume.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        SessionHome(home).remove(session)
    assert LocalLease(session.epoch).take() == 4


def test_nobody_waits_for_a_deleted_session(home: Home) -> None:
    session = used(home)
    needed = Path(home.get("photos").needed)
    needed.mkdir()
    (needed / session.name).write_text("1")
    SessionHome(home).remove(session)
    assert home.get("photos").needed_from() is None


class TestOnAMetaVolume:
    @pytest.fixture
    def nodes(self, tmp_path: Path) -> list[Home]:
        """Two nodes' state directories, with one meta volume."""
        (tmp_path / "meta" / "geo-rep").mkdir(parents=True)
        (tmp_path / "photos").mkdir()
        homes = []
        for node in ("a", "b"):
            home = Home(str(tmp_path / node))
            home.add("photos", str(tmp_path / "photos"))
            for name, value in [("use-meta-volume", "true"), ("meta-volume-mnt", str(tmp_path / "meta"))]:
                config.set_value(config.node_path(home.path), name, value)
            homes.append(home)
        return homes

    def test_deleted_on_another_node_it_is_gone_here(self, nodes: list[Home]) -> None:
        session = used(nodes[0])
        assert session.on_meta_volume
        other = SessionHome(nodes[1])
        other.remove(other.get(session.name))
        assert SessionHome(nodes[0]).list() == []

    def test_a_meta_volume_that_is_not_mounted_is_no_deletion(self, nodes: list[Home], tmp_path: Path) -> None:
        session = used(nodes[0])
        (tmp_path / "meta" / "geo-rep").rename(tmp_path / "away")
        assert [each.name for each in SessionHome(nodes[0]).list()] == [session.name]

    def test_made_again_where_it_was_not_deleted_it_goes_on(self, nodes: list[Home]) -> None:
        session = used(nodes[0])
        other = SessionHome(nodes[1])
        other.remove(other.get(session.name))
        here = SessionHome(nodes[0])
        again = here.find_or_new("photos", "h:/copy")
        here.save(again)
        assert ChangelogDB(again.changelog_db).fact("patterns") == '["*.o"]'
        assert not Path(again.key).exists()
