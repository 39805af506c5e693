"""Every SQLite file is opened in one way: its version is checked, its transactions are all or nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from gsync.base.database import FACTS, Database
from gsync.base.errors import UsageError

NAMES = "CREATE TABLE IF NOT EXISTS names (name TEXT PRIMARY KEY);"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.db")


def names(path: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT name FROM names ORDER BY name")]


def tables(path: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]


def test_a_new_file_has_its_tables_and_its_version(path: str) -> None:
    with contextlib.closing(Database.open(path, NAMES, 3)) as db:
        assert db.version() == 3
    assert names(path) == []


def test_what_it_holds_is_there_the_next_time(path: str) -> None:
    for name in ("a", "b"):
        with contextlib.closing(Database.open(path, NAMES, 1)) as db:
            db.execute("INSERT INTO names VALUES (?)", (name,))
    assert names(path) == ["a", "b"]


def test_a_table_that_came_without_a_new_version_is_made(path: str) -> None:
    Database.open(path, NAMES, 1).close()
    Database.open(path, NAMES + FACTS, 1).close()
    assert tables(path) == ["names", "facts"]


def test_a_file_of_before_versions_keeps_its_rows(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(NAMES + "INSERT INTO names VALUES ('old');")
    with contextlib.closing(Database.open(path, NAMES, 2, migrations={1: "DROP TABLE names;"})) as db:
        assert db.version() == 2
    assert names(path) == ["old"]


def test_an_older_file_is_brought_up_step_by_step(path: str) -> None:
    Database.open(path, NAMES, 1).close()
    migrations = {1: "INSERT INTO names VALUES ('2');", 2: "UPDATE names SET name=name || '3';"}
    with contextlib.closing(Database.open(path, NAMES, 3, migrations=migrations)) as db:
        assert db.version() == 3
    assert names(path) == ["23"]


def test_a_migration_that_fails_changes_nothing(path: str) -> None:
    Database.open(path, NAMES, 1).close()
    migrations = {1: "INSERT INTO names VALUES ('2');", 2: "INSERT INTO nothing VALUES (1);"}
    with pytest.raises(sqlite3.OperationalError, match="nothing"):
        Database.open(path, NAMES, 3, migrations=migrations)
    assert names(path) == []
    with contextlib.closing(Database.open(path, NAMES, 1)) as db:
        assert db.version() == 1


def test_a_newer_file_is_refused_in_one_line_and_left_alone(path: str) -> None:
    Database.open(path, FACTS, 9).close()
    with pytest.raises(UsageError, match=r"a\.db: format 9 was written by a newer .* up to 2: use the") as caught:
        Database.open(path, NAMES, 2)
    assert "\n" not in str(caught.value)
    assert tables(path) == ["facts"]


def test_readonly_makes_and_changes_nothing(path: str) -> None:
    with pytest.raises(sqlite3.OperationalError):
        Database.open(path, NAMES, 1, readonly=True)
    Database.open(path, NAMES, 1).close()
    with contextlib.closing(Database.open(path, NAMES + FACTS, 1, readonly=True)) as db, \
            pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("INSERT INTO names VALUES ('a')")
    assert tables(path) == ["names"]


def test_readonly_takes_any_path(tmp_path: Path) -> None:
    path = str(tmp_path / "a?b#c%41.db")
    Database.open(path, NAMES, 1).close()
    with contextlib.closing(Database.open(path, version=1, readonly=True)) as db:
        assert db.execute("SELECT count(*) FROM names").fetchone() == (0,)


class TestTransactions:
    def test_it_is_there_once_it_has_ended(self, path: str) -> None:
        with contextlib.closing(Database.open(path, NAMES, 1)) as db:
            with db.atomic():
                db.execute("INSERT INTO names VALUES ('a')")
                assert names(path) == []
            assert names(path) == ["a"]

    def test_an_exception_takes_all_of_it_back(self, path: str) -> None:
        with contextlib.closing(Database.open(path, NAMES, 1)) as db:
            with pytest.raises(KeyboardInterrupt), db.atomic():
                db.execute("INSERT INTO names VALUES ('a')")
                raise KeyboardInterrupt
            assert not db.in_transaction
        assert names(path) == []

    def test_one_within_another_is_part_of_it(self, path: str) -> None:
        with contextlib.closing(Database.open(path, NAMES, 1)) as db:
            def inner_and_then_fail() -> None:
                with db.atomic():
                    db.execute("INSERT INTO names VALUES ('a')")
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt), db.atomic():
                inner_and_then_fail()
        assert names(path) == []

    def test_nobody_else_writes_meanwhile(self, path: str) -> None:
        with contextlib.closing(Database.open(path, NAMES, 1)) as db, \
                contextlib.closing(Database.open(path, NAMES, 1, timeout=0.0)) as other, db.atomic(), \
                pytest.raises(sqlite3.OperationalError, match="locked"), other.atomic():
            pass

    def test_opening_what_has_all_its_tables_waits_for_nobody(self, path: str) -> None:
        schema = NAMES + "CREATE INDEX IF NOT EXISTS names_name ON names (name);"
        with contextlib.closing(Database.open(path, schema, 1)) as db, db.atomic(), \
                contextlib.closing(Database.open(path, schema, 1, timeout=0.0)) as other:
            assert other.execute("SELECT count(*) FROM names").fetchone() == (0,)

    def test_the_error_of_a_commit_is_told_and_the_next_one_works(self, path: str) -> None:
        deferred = "CREATE TABLE IF NOT EXISTS refs (name REFERENCES names DEFERRABLE INITIALLY DEFERRED);"
        with contextlib.closing(Database.open(path, NAMES + deferred, 1)) as db:
            db.execute("PRAGMA foreign_keys=ON")
            with pytest.raises(sqlite3.IntegrityError), db.atomic():
                db.execute("INSERT INTO refs VALUES ('none')")
            with db.atomic():
                db.execute("INSERT INTO names VALUES ('a')")
        assert names(path) == ["a"]


def test_facts(path: str) -> None:
    with contextlib.closing(Database.open(path, FACTS, 1)) as db:
        assert db.fact("a") is None
        db.set_fact("a", 1)
        db.set_fact("a", "two")
    with contextlib.closing(Database.open(path, FACTS, 1)) as db:
        assert db.fact("a") == "two"


@pytest.mark.parametrize(("wal", "mode"), [(True, "wal"), (False, "delete")])
def test_how_it_is_written(path: str, wal: bool, mode: str) -> None:
    with contextlib.closing(Database.open(path, NAMES, 1, wal=wal, synchronous="FULL")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_temporary_tables_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(Database.temporary(NAMES)) as db:
        db.execute("INSERT INTO names VALUES ('a')")
        assert db.execute("SELECT name FROM names").fetchall() == [("a",)]
    assert list(tmp_path.iterdir()) == []
