"""Catalogs: an entry is in once, whatever was killed or repeated; what cannot be taken says whether to try again."""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gsync.base.errors import UsageError
from gsync.transfer.catalog.catalog import (
    Action,
    CatalogError,
    CommandCatalog,
    HttpCatalog,
    JsonLinesCatalog,
    Registration,
    SqliteCatalog,
    open_catalog,
    parse_catalog,
)
from gsync.transfer.stores.store import Category


def entry(n: int, action: Action = Action.REGISTER, name: bytes = b"run/data") -> Registration:
    return Registration(f"id{n}", name, "east", "/srv/east", name, 5, "sha256:" + "ab" * 32, "ann", "r1", 10**18 + n,
                        action)


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


# SQLite

def test_sqlite_holds_an_entry_once(tmp_path: Path) -> None:
    catalog = SqliteCatalog(str(tmp_path / "new" / "catalog.db"))
    catalog.apply([entry(1), entry(2)])
    catalog.apply([entry(2), entry(3)], again=True)
    assert len(catalog.where(b"run/data")) == 3


def test_sqlite_a_late_registration_does_not_undo_a_withdrawal(tmp_path: Path) -> None:
    catalog = SqliteCatalog(str(tmp_path / "catalog.db"))
    catalog.apply([entry(1)])
    catalog.apply([entry(1, Action.WITHDRAW)])
    catalog.apply([entry(1)])
    assert catalog.where(b"run/data") == []


def test_sqlite_withdrawn_before_it_was_registered(tmp_path: Path) -> None:
    catalog = SqliteCatalog(str(tmp_path / "catalog.db"))
    catalog.apply([entry(1, Action.WITHDRAW)])
    catalog.apply([entry(1)])
    assert catalog.where(b"run/data") == []


def test_sqlite_that_is_no_database_is_refused_for_ever(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"something else, long enough to be looked at\n" * 100)
    with pytest.raises(CatalogError) as caught:
        SqliteCatalog(str(tmp_path / "catalog.db")).apply([entry(1)])
    assert caught.value.category is Category.PERMANENT


def test_sqlite_that_is_locked_is_tried_again(tmp_path: Path) -> None:
    catalog = SqliteCatalog(str(tmp_path / "catalog.db"), timeout=0.01)
    catalog.apply([entry(1)])
    other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CatalogError, match="locked") as caught:
        catalog.apply([entry(2)])
    assert caught.value.category is Category.STORE_DOWN
    other.execute("ROLLBACK")
    other.close()


# JSON lines

def test_json_lines_again_writes_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    catalog = JsonLinesCatalog(str(path))
    catalog.apply([entry(1), entry(2)])
    catalog.apply([entry(1), entry(2), entry(3)], again=True)
    catalog.apply([entry(2, Action.WITHDRAW)], again=True)
    assert ids(path) == ["id1", "id2", "id3", "id2"]


def test_json_lines_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    """A writer was killed in the middle of a block: what is whole stays, the rest is written again."""
    path = tmp_path / "catalog.jsonl"
    catalog = JsonLinesCatalog(str(path))
    catalog.apply([entry(1), entry(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    catalog.apply([entry(1), entry(2)], again=True)
    assert path.read_bytes() == whole


def test_json_lines_a_file_of_one_torn_line_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_bytes(b"x" * 200_000)
    JsonLinesCatalog(str(path)).apply([entry(1)])
    assert ids(path) == ["id1"]


def test_json_lines_names_that_are_not_utf8_come_with_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    JsonLinesCatalog(str(path)).apply([entry(1, name=b"a\n\xff")])
    (line,) = path.read_bytes().splitlines()
    assert json.loads(line)["name"] == {"path": "a\n\ufffd", "path_b64": "YQr/"}


def test_json_lines_in_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="No such file") as caught:
        JsonLinesCatalog(str(tmp_path / "gone" / "x")).apply([entry(1)])
    assert caught.value.category is Category.STORE_DOWN


def test_json_lines_when_the_file_cannot_grow_nothing_half_remains(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    catalog = JsonLinesCatalog(str(path))
    catalog.apply([entry(1)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limits[1]))
    try:
        with pytest.raises(CatalogError, match="File too large") as caught:
            catalog.apply([entry(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.category is Category.STORE_DOWN
    assert ids(path) == ["id1"]


# a command

def command(code: str, timeout: float = 60) -> CommandCatalog:
    return CommandCatalog([sys.executable, "-c", code], timeout)


def test_a_command_reads_the_entries_from_stdin(tmp_path: Path) -> None:
    got = tmp_path / "got"
    command(f"import sys; open({str(got)!r}, 'wb').write(sys.stdin.buffer.read())").apply(
        [entry(1), entry(2, Action.WITHDRAW)])
    assert [json.loads(line)["action"] for line in got.read_bytes().splitlines()] == ["register", "withdraw"]


@pytest.mark.parametrize(("code", "category"), [
    (1, Category.TRANSIENT), (75, Category.STORE_DOWN), (65, Category.PERMANENT), (77, Category.PERMANENT)])
def test_the_exit_code_of_a_command_decides(code: int, category: Category) -> None:
    with pytest.raises(CatalogError, match=f"exited with status {code}: no, not this") as caught:
        command(f"import sys; sys.stderr.write('one\\nno, not this\\n'); sys.exit({code})").apply([entry(1)])
    assert caught.value.category is category


def test_a_command_that_reads_nothing_and_writes_much_does_not_hang() -> None:
    command("import sys; sys.stdout.write('x' * 10**6); sys.stderr.write('x' * 10**6)").apply(
        [entry(n) for n in range(2000)])


def test_a_command_that_does_not_end() -> None:
    with pytest.raises(CatalogError, match=r"did not exit within 0\.2 s") as caught:
        command("import time; time.sleep(60)", timeout=0.2).apply([entry(1)])
    assert caught.value.category is Category.STORE_DOWN


def test_a_command_gets_words_not_a_shell_line(tmp_path: Path) -> None:
    """No shell sees the command (ASO ran shell lines with paths in them)."""
    catalog = open_catalog(f"command:'{sys.executable}' -c 'import sys; sys.exit(sys.argv[1] != \"$(x) ; y\")' "
                           "'$(x) ; y'", str(tmp_path))
    catalog.apply([entry(1)])


# HTTP

@contextmanager
def server(status: int, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[Any]]]:
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers, json.loads(body)))
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(b"because\nof this")

        def do_GET(self) -> None:
            seen.append("GET")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}/replicas", seen
        finally:
            httpd.shutdown()
            thread.join()


def test_http_posts_the_block(tmp_path: Path) -> None:
    with server(201) as (url, seen):
        catalog = open_catalog(url, str(tmp_path))
        catalog.apply([entry(1), entry(2)])
        catalog.apply([entry(1), entry(2)], again=True)
    (path, headers, body), (_, headers2, _) = seen
    assert path == "/replicas"
    assert [e["id"] for e in body["entries"]] == ["id1", "id2"]
    assert headers["Idempotency-Key"] == headers2["Idempotency-Key"]


@pytest.mark.parametrize(("status", "category"), [
    (500, Category.TRANSIENT), (503, Category.STORE_DOWN), (429, Category.STORE_DOWN), (400, Category.PERMANENT),
    (403, Category.PERMANENT)])
def test_the_http_status_decides(status: int, category: Category) -> None:
    with server(status) as (url, _), pytest.raises(CatalogError, match=f"HTTP {status} .*because$") as caught:
        HttpCatalog(url).apply([entry(1)])
    assert caught.value.category is category


def test_a_redirect_is_not_taken_for_success() -> None:
    with server(302, {"Location": "/elsewhere"}) as (url, seen), pytest.raises(CatalogError, match="302"):
        HttpCatalog(url).apply([entry(1)])
    assert "GET" not in seen


def test_nobody_answers() -> None:
    with server(200) as (url, _):
        pass
    with pytest.raises(CatalogError) as caught:
        HttpCatalog(url).apply([entry(1)])
    assert caught.value.category is Category.STORE_DOWN


def test_user_and_password_come_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    with server(200) as (url, seen):
        HttpCatalog(url).apply([entry(1)])
    assert seen[0][1]["Authorization"] == "Basic YW5uOnNlY3JldA=="


# how they are written

def test_paths_are_recorded_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_catalog("jsonl:a b") == f"jsonl:{tmp_path}/a b"
    assert open_catalog("default", str(tmp_path)).text == "default"


@pytest.mark.parametrize("text", ["", "x", "sqlite:", "command:", "command:'", "http:", "http://", "ftp://h/x",
                                  "https://ann:secret@host/x"])
def test_what_names_no_catalog(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_catalog(text)
    assert "secret" not in str(caught.value)
