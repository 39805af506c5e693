"""The status page: what it shows, that it needs nothing from elsewhere, and that Chromium shows it."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gsync.transfer.archive.rows import Archives
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.transfers import Transfers
from lab.nights import Nights, night_of, remove

EVIL = b"<script>document.title='evil'</script>&\"'"
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


class Links(html.parser.HTMLParser):
    """What a page refers to, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "data")]


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    """Green, amber and red: two nights of this year's or the last's, and one of 2024."""
    nights = Nights(tmp_path)
    nights.make("20241231", 1)
    nights.round(now=datetime(2025, 1, 1, 21, tzinfo=UTC))
    bad = nights.make(night_of(3), 2)
    nights.write(bad, EVIL.replace(b"/", b"_") + b"\n\xff", b"not listed")
    nights.make(night_of(3), 3)
    gone = nights.make(night_of(0), 4)
    remove(nights.data / os.fsdecode(gone))
    nights.round()
    return nights


def test_it_refers_to_nothing_but_its_own_files(nights: Nights) -> None:
    names = set(os.listdir(nights.page))
    assert {"index.html", "2024.html", "status.json", "style.css", "night-raw-20241231.html"} <= names
    assert not any(name.endswith(".new") for name in names)
    reached, seen = ["index.html"], set()
    while reached:
        name = reached.pop()
        if name in seen or not name.endswith(".html"):
            continue
        seen.add(name)
        page = Links((nights.page / name).read_text())
        assert "script" not in page.tags
        assert set(page.links) <= names
        reached += page.links
    assert seen == {name for name in names if name.endswith(".html")}
    style = (nights.page / "style.css").read_text()
    assert not re.search(r"url\(|@import|https?:", style)


def test_it_shows_states_reasons_and_names(nights: Nights) -> None:
    index = (nights.page / "index.html").read_text()
    assert "2 units need attention" in index
    assert "the target of the link" in index
    night = (nights.page / f"night-raw-{night_of(3)}.html").read_text()
    assert "&lt;script&gt;" in night
    assert "\\n\\xff" in night
    assert night.count('class="chip red"') == 2  # one unit, and the legend
    document = json.loads((nights.page / "status.json").read_text())
    assert [each["colour"] for each in document["sets"][0]["nights"]] == ["amber", "red", "green"]


def test_only_nights_that_changed_are_written(nights: Nights) -> None:
    before = {path.name: path.stat().st_ino for path in nights.page.iterdir()}
    nights.make(night_of(0), 5)
    nights.round(now=datetime.now(UTC) + timedelta(seconds=5))
    after = {path.name: path.stat().st_ino for path in nights.page.iterdir()}
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert {"index.html", "status.json", f"night-raw-{night_of(0)}.html"} <= changed
    assert not {"2024.html", "night-raw-20241231.html", f"night-raw-{night_of(3)}.html", "style.css"} & changed


@pytest.fixture
def busy(nights: Nights) -> Nights:
    """Beside deliveries: a copy that failed, a replication that waits, an archive whose put failed, a banned store."""
    with closing(Transfers(str(nights.home))) as transfers:
        copy = Intake(transfers).submit(NewRequest("queue", "ann", [
            NewOperation("copy", [NewTransfer("disk", EVIL.replace(b"/", b"_"), "tape", b"x")])]))
        (row,) = transfers.page(request=copy)
        transfers.advance([row.id], TransferState.NEW, TransferState.FAILED, reason="quota of <ann>")
        Intake(transfers).submit(NewRequest("send", "bob", [
            NewOperation("replicate", [NewTransfer("spare", b"y", "wanted", b"y")])]))
        Archives(transfers, str(nights.home)).add("archive", b"/data/run 1", "tape", b"place", "put")
        Stores(transfers).ban("tape", "a new drive comes", 3600)
    nights.round()
    return nights


def test_it_shows_what_else_the_state_folder_holds(busy: Nights) -> None:
    index = (busy.page / "index.html").read_text()
    for figure in ("<b class=\"red-text\">2</b>failed", "<b class=\"\">1</b>replications pending",
                   "<b class=\"red-text\">1</b>archive jobs failed", "<b class=\"red-text\">1</b>stores banned"):
        assert figure in index
    page = (busy.page / "transfers.html").read_text()
    for text in ("quota of &lt;ann&gt;", "disk → tape", "/data/run 1", "put failed", "a new drive comes", "1 FAILED"):
        assert text in page
    assert "<script>" not in page
    found = json.loads((busy.page / "status.json").read_text())["transfers"]
    assert {"name": "bob", "states": {"NEW": 1}} in found["owners"]
    assert {"name": "spare,wanted", "states": {"NEW": 1}} in found["links"]


@needs_chromium
def test_chromium_shows_that_too(busy: Nights, tmp_path: Path) -> None:
    found = picture(busy.page / "transfers.html", tmp_path)
    for colour in ("fdf0c9", "fbdedb"):
        assert found.count(bytes.fromhex(colour)) > 500, colour


@needs_chromium
def test_chromium_shows_it_in_its_colours(nights: Nights, tmp_path: Path) -> None:
    """The style is found, nothing covers anything: the backgrounds of all three colours are there to be seen."""
    found = picture(nights.page / "index.html", tmp_path)
    for colour in ("d9f0e1", "fdf0c9", "fbdedb"):
        assert found.count(bytes.fromhex(colour)) > 500, colour


def picture(page: Path, folder: Path) -> bytes:
    """The pixels, three bytes each, of what headless Chromium shows of a page."""
    shot = folder / "shot.png"
    subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--disable-sync",
                    "--hide-scrollbars", f"--user-data-dir={folder}/chromium", "--window-size=1250,1400",
                    f"--screenshot={shot}", page.as_uri()], check=True, timeout=120, capture_output=True)
    return pixels(shot.read_bytes())


def pixels(png: bytes) -> bytes:
    """Of a PNG with 8 bits a channel, not interlaced (RFC 2083, sections 4 and 6)."""
    data, place, width, channels = b"", 8, 0, 0
    while place < len(png):
        size, kind = struct.unpack(">I4s", png[place:place + 8])
        body = png[place + 8:place + 8 + size]
        if kind == b"IHDR":
            width, _height, depth, colour, *_ = struct.unpack(">IIBBBBB", body)
            channels = {2: 3, 6: 4}[colour]
            assert depth == 8
        elif kind == b"IDAT":
            data += body
        place += size + 12
    raw, found, stride = zlib.decompress(data), bytearray(), width * channels
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = bytearray(raw[start + 1:start + 1 + stride])
        how = raw[start]
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            up, corner = above[i], above[i - channels] if i >= channels else 0
            if how == 4:
                guess = left + up - corner
                near = min((abs(guess - left), 0), (abs(guess - up), 1), (abs(guess - corner), 2))[1]
                predicted = (left, up, corner)[near]
            else:
                predicted = (0, left, up, (left + up) // 2)[how]
            line[i] = (line[i] + predicted) & 0xFF
        above = line
        for i in range(0, stride, channels):
            found += line[i:i + 3]
    return bytes(found)
