"""tools/changelog-dump, as a person or a script runs it: with no set-up, from any folder."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gsync.base.model import ROOT_GFID, gfid_str
from gsync.changelog.records import HEADER, Data, Entry, Fop, encode
from gsync.changelog.writer import ChangelogWriter
from lab import REPOSITORY
from lab.changelogs import SAMPLE, changelog, gfid

TOOL = REPOSITORY / "tools" / "changelog-dump"
T = 1_700_000_000
G8 = gfid_str(gfid(8))


def dump(*args: object, code: int = 0) -> list[str]:
    """The lines it printed; it must end with `code`."""
    # -S: no site-packages. Nothing but Python may be needed.
    command = ["python3", "-S", str(TOOL), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (code == 2)
    return done.stdout.splitlines()


def dump_json(*args: object, code: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dump(*args, "--json", code=code)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "changelogs"
    writer = ChangelogWriter(os.fsencode(folder), T)
    writer.append(SAMPLE)
    writer.roll(T + 1)
    writer.append([Data(gfid(9))])
    writer.roll(T + 2)
    writer.append([Data(gfid(10))])
    writer.close()
    return folder


def test_a_changelog_is_one_line_per_record(folder: Path) -> None:
    lines = dump(folder / "2023/11/14/CHANGELOG.1700000001")
    assert lines[0].endswith("CHANGELOG.1700000001: slice until 2023-11-14T22:13:21Z")
    assert len(lines) == 1 + len(SAMPLE)
    assert lines[1] == f"E {gfid_str(gfid(7))} MKDIR 0040755 0 0 {gfid_str(ROOT_GFID)}/dir\\n1"
    assert lines[3:5] == [f"D {G8}", f"M {G8} SETATTR"]
    assert lines[5] == (
        f"E {G8} RENAME {gfid_str(gfid(7))}/hello world -> {gfid_str(ROOT_GFID)}/-\\xff\\r%20\\"
    )
    assert lines[7].endswith(f"/{'x' * 255} (dir\\n1/{'x' * 255})")


def test_json_has_every_name_exactly(folder: Path) -> None:
    documents = dump_json(folder / "2023/11/14/CHANGELOG.1700000001")
    assert len(documents) == len(SAMPLE)
    assert {key: documents[0][key] for key in ["type", "fop", "mode", "uid", "gid", "names"]} == {
        "type": "E", "fop": "MKDIR", "mode": 0o40755, "uid": 0, "gid": 0,
        "names": [{"pargfid": gfid_str(ROOT_GFID), "path": "dir\n1"}],
    }  # fmt: skip
    assert documents[2]["type"] == "D"
    assert documents[3]["fop"] == "SETATTR"
    new_name = documents[4]["names"][1]
    assert base64.b64decode(new_name["path_b64"]) == b"-\xff\r%20\\"
    assert documents[6]["removed_path"] == {"path": "dir\n1/" + "x" * 255}


def test_a_whole_folder_is_lists_then_changelogs_then_the_live_one(folder: Path) -> None:
    lines = dump(folder)
    headings = [line.rpartition("/")[2].partition(":")[0] for line in lines if line.startswith("==>")]
    assert headings == ["HTIME.1700000000", "CHANGELOG.1700000001", "CHANGELOG.1700000002", "CHANGELOG"]
    assert lines[1].startswith("1700000001 2023-11-14T22:13:21Z /")
    assert lines[-1] == f"D {gfid_str(gfid(10))}"
    lists = [document for document in dump_json(folder) if document["type"] == "htime"]
    assert [(document["ts"], document["empty"]) for document in lists] == [(T + 1, False), (T + 2, False)]


def test_an_empty_slice_of_glusterfs_is_shown_as_such(tmp_path: Path) -> None:
    path = tmp_path / "HTIME.1700000000"
    path.write_bytes(b"/b/.glusterfs/changelogs/2023/11/14/changelog.1700000005\0")
    assert dump(path)[1] == "1700000005 2023-11-14T22:13:25Z no changes"
    (document,) = dump_json(path)
    assert document["empty"] is True


def test_what_cannot_be_read_is_shown_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.1700000001"
    unknown = b"E%s\x0099\0" % G8.encode()
    path.write_bytes(HEADER + unknown + encode(Data(gfid(9))) + encode(Data(gfid(9)))[:-1])
    lines = dump(path, code=1)
    assert lines[1].startswith(f"! unknown fop at byte {len(HEADER)}, {len(unknown)} bytes")
    assert lines[2] == f"D {gfid_str(gfid(9))}"
    assert lines[3].startswith("! torn record at the end")
    problem, record, torn = dump_json(path, code=1)
    assert (problem["kind"], problem["offset"]) == ("UNKNOWN_FOP", len(HEADER))
    assert (record["type"], torn["kind"]) == ("D", "TORN")


def test_damage_in_a_list_is_shown_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "HTIME.1700000000"
    path.write_bytes(b"/b/CHANGELOG.1700000005\0junk\0/b/c/CHANGELOG.1700000007\0/b/CHANGE")
    lines = dump(path, code=1)
    assert lines[1].startswith("1700000005 ")
    assert lines[2].startswith("! record 1: not the path of a changelog")
    assert lines[3] == "! record 2: not as long as the first"
    assert lines[4].startswith("1700000007 ")
    assert lines[5] == "! torn record at the end: 9 bytes"


def test_hostile_file_names_do_not_break_lines(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"a\nb\xff")
    folder.mkdir()
    name = (ROOT_GFID, b"\n==> \xff")
    (folder / "CHANGELOG").write_bytes(changelog([Entry(Fop.LINK, gfid(1), (name,))]))
    assert len(dump(folder)) == 2
    (document,) = dump_json(folder)
    assert base64.b64decode(document["file"]["path_b64"]) == os.fsencode(folder / "CHANGELOG")


@pytest.mark.parametrize("name", ["missing", "empty folder"])
def test_nothing_to_print_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty folder").mkdir()
    assert dump(tmp_path / name, code=2) == []


def test_a_reader_that_stops_early_is_fine(folder: Path) -> None:
    done = subprocess.run(f"python3 {TOOL} {folder} {folder} | head -n 1", shell=True, capture_output=True, check=True)
    assert done.stderr == b""
