"""The manifest of an archive: any name, whole or refused, bounded memory; and the form that EOS's users read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsync.transfer.archive import eosfile
from gsync.transfer.archive.manifest import (
    Manifest,
    ManifestEntry,
    ManifestError,
    ManifestHeader,
    ManifestWriter,
    entry_of,
    line_of,
)
from lab import REPOSITORY
from lab.syncs import Syncs
from lab.trees import HOSTILE_NAMES

SHA = "ab" * 32
HEADER = ManifestHeader(b"/data/x", "vault", b"archives/1", 1_700_000_000_000_000_005, 10, 20)


def file(path: bytes, **more: object) -> ManifestEntry:
    return replace(ManifestEntry(path, stat.S_IFREG, 3, 5, 6, 1, 2, 0o644, SHA), **more)  # type: ignore[arg-type]


def written(folder: Path, entries: list[ManifestEntry], header: ManifestHeader = HEADER) -> Manifest:
    writer = ManifestWriter(os.fsencode(folder / "manifest"))
    for entry in entries:
        writer.add(entry)
    return writer.finish(header)


ROOT = ManifestEntry(b"", stat.S_IFDIR, mode=0o2755)
part = st.binary(min_size=1, max_size=20).filter(lambda raw: not set(raw) & {0, 47} and raw not in (b".", b".."))
paths = st.lists(part, min_size=1, max_size=4).map(b"/".join)
times = st.integers(-(1 << 62), 1 << 62)


@given(st.builds(
    ManifestEntry, paths, st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO]), st.just(0), times,
    times,
    st.integers(0, (1 << 32) - 2), st.integers(0, (1 << 32) - 2), st.integers(0, 0o7777), st.just(SHA),
    st.none() | st.binary(max_size=10), st.none() | paths, st.integers(0, 1 << 40), st.booleans(),
    st.dictionaries(st.binary(min_size=1, max_size=8), st.binary(max_size=8)).map(lambda d: tuple(sorted(d.items())))))
def test_an_entry_is_read_as_it_was_written(entry: ManifestEntry) -> None:
    line = line_of(entry)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert entry_of(line) == entry


def test_directories_come_first_and_can_be_read_backwards(tmp_path: Path) -> None:
    names = [b"d%06d" % n for n in range(30_000)]  # several blocks
    manifest = written(tmp_path, [ROOT, file(b"a"), *(ManifestEntry(name, stat.S_IFDIR) for name in names), file(b"b")])
    assert [e.path for e in manifest.directories()] == [b"", *names]
    assert [e.path for e in manifest.reversed_directories()] == [*reversed(names), b""]
    assert [e.path for _, e in manifest.entries(manifest.behind_directories())] == [b"a", b"b"]
    assert (manifest.header.directories, manifest.header.files, manifest.header.bytes) == (30_000, 2, 6)
    assert sorted(os.listdir(tmp_path)) == ["manifest"]


def test_a_manifest_is_durable_before_it_has_its_name_and_its_name_before_it_counts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = Syncs(monkeypatch)
    written(tmp_path, [ROOT, file(b"a")])
    new = syncs.calls[0][1]
    assert new != "manifest"
    assert [call for call in syncs.calls if call[0] != "unlink"] == [
        ("fsync", new), ("rename", "manifest"), ("fsync", tmp_path.name)]


def test_the_manifest_of_a_later_gsync_is_refused_as_such(tmp_path: Path) -> None:
    manifest = written(tmp_path, [ROOT, file(b"a")])
    path = Path(os.fsdecode(manifest.path))
    first, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(first), "format": 1000}).encode() + b"\n" + rest)
    with pytest.raises(ManifestError, match="format 1000 is unknown"):
        _ = Manifest(manifest.path).header


@pytest.mark.parametrize("changed", [{"path": 7}, {"mode": 7}, {"xattrs_b64": {"!": "!"}}])
def test_an_entry_of_another_shape_is_refused(changed: dict[str, object]) -> None:
    line = json.dumps({**json.loads(line_of(file(b"a"))), **changed}).encode()
    with pytest.raises(ValueError):
        entry_of(line)


def test_reading_goes_on_from_any_offset(tmp_path: Path) -> None:
    manifest = written(tmp_path, [ROOT, *(file(b"%d" % n) for n in range(10))])
    rows = list(manifest.entries())
    for at, (offset, _) in enumerate(rows[:-1]):
        assert list(manifest.entries(offset)) == rows[at + 1:]


def test_a_manifest_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    manifest = written(tmp_path, [ROOT, file(b"a"), file(b"b")])
    manifest.check()
    path = tmp_path / "manifest"
    whole = path.read_bytes()
    for damaged in (whole[:-80], whole.replace(b'"a"', b'"c"'), whole[:len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ManifestError):
            Manifest(os.fsencode(path)).check()
    path.write_bytes(whole[:whole.rindex(b'{"end"')])
    with pytest.raises(ManifestError, match="truncated"):
        list(Manifest(os.fsencode(path)).entries())


@pytest.mark.parametrize("text", [b"", b"{}\n", b"[]\n", b'{"gsync":"manifest","format":9}\n', b"\xff\n",
                                  b'{"gsync":"manifest","format":1,"store":3}\n'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(text)
    with pytest.raises(ManifestError):
        Manifest(os.fsencode(path))


@pytest.mark.parametrize("path", [b"../x", b"a/../b", b"/etc", b"a//b", b"a/", b"./a", b"a\0b"])
def test_a_path_that_leads_out_of_the_tree_is_refused(path: bytes) -> None:
    """The manifest may come from a vault that somebody else can write to."""
    with pytest.raises(ValueError, match="out of the tree"):
        entry_of(line_of(file(path)))
    with pytest.raises(ValueError, match="out of the tree"):
        entry_of(line_of(file(b"x", link=path)))


MILLION = """
import resource, stat, sys
from gsync.transfer.archive.manifest import ManifestEntry, ManifestHeader, ManifestWriter
from gsync.transfer.archive import eosfile
writer = ManifestWriter(sys.argv[1].encode())
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
writer.add(ManifestEntry(b"", stat.S_IFDIR))
for n in range(int(sys.argv[2]) // 2):
    writer.add(ManifestEntry(b"d%d" % n, stat.S_IFDIR))
    writer.add(ManifestEntry(b"d%d/f" % n, stat.S_IFREG, sha256="ab" * 32))
manifest = writer.finish(ManifestHeader(b"/x", "v", b"p", 0))
manifest.check()
count = sum(1 for _ in manifest.entries()) + sum(1 for _ in manifest.reversed_directories())
count += sum(1 for _ in eosfile.lines(manifest, "tar:///v"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base, count)
"""


@pytest.mark.parametrize("entries", [40_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_manifest(tmp_path: Path, entries: int) -> None:
    """EOS item 4 and bounded memory: written, checked, read both ways, exported, within a few MiB (grown in KiB)."""
    done = subprocess.run([sys.executable, "-c", MILLION, str(tmp_path / "m"), str(entries)], check=True,
                          capture_output=True, text=True, cwd=REPOSITORY)
    grown, count = map(int, done.stdout.split())
    assert count == (entries + 1) + (entries // 2 + 1) + (entries + 2)
    assert grown < 12 * 1024, f"{grown} KiB"


# EOS's own form

def eos(manifest: Manifest, window: int | None = None) -> list[object]:
    return [json.loads(line) for line in eosfile.lines(manifest, "tar:///tape", window)]


def test_the_export_is_an_eos_archive_file(tmp_path: Path) -> None:
    """Header with columns, directories with "./" first, then files; values are strings, times sec.nsec, mode octal."""
    manifest = written(tmp_path, [
        ROOT, ManifestEntry(b"d", stat.S_IFDIR, 0, 1, 2, 3, 4, 0o2750,
                            xattrs=((b"user.a", b"v"), (b"user.b", b"\xff"))),
        file(b"d/f", mtime=1_400_000_000_000_000_007, size=12), ManifestEntry(b"l", stat.S_IFLNK, target=b"d/f")])
    assert eos(manifest) == [
        {"src": "file:///data/x/", "dst": "tar:///tape/archives/1/", "svc_class": "",
         "dir_meta": ["uid", "gid", "mode", "attr"],
         "file_meta": ["size", "mtime", "ctime", "uid", "gid", "mode", "xstype", "xs"],
         "uid": "10", "gid": "20", "timestamp": 1_700_000_000, "num_dirs": 1, "num_files": 1},
        ["d", "./", "0", "0", "2755", {}],
        ["d", "d/", "3", "4", "2750", {"user.a": "v", "user.b": "0s/w=="}],
        ["f", "d/f", "12", "1400000000.000000007", "0.000000006", "1", "2", "644", "sha256", SHA]]


def test_a_backup_file_has_source_and_destination_swapped(tmp_path: Path) -> None:
    header = replace(HEADER, excluded_xattrs=("user.tmp",), window="mtime", since=5)
    doc = eos(written(tmp_path, [ROOT], header), 172800)[0]
    assert isinstance(doc, dict)
    assert (doc["src"], doc["dst"]) == ("tar:///tape/archives/1/", "file:///data/x/")
    assert (doc["excl_xattr"], doc["twindow_type"], doc["twindow_val"]) == (["user.tmp"], "mtime", "172800")


def test_eos_item_4_a_manifest_holds_any_name(tmp_path: Path) -> None:
    """EOS puts lines together by hand: quotes and newlines break them; xattrs of one directory leak into the next."""
    entries = [ROOT]
    for name in HOSTILE_NAMES:
        entries += [ManifestEntry(name, stat.S_IFDIR, xattrs=((name[:200], name),)),
                    ManifestEntry(name + b"/d", stat.S_IFDIR)]
    entries += [file(name + b"/f") for name in HOSTILE_NAMES]
    manifest = written(tmp_path, entries)
    assert [e for _, e in manifest.entries()] == entries
    lines = eos(manifest)
    assert [os.fsencode(line[1]) for line in lines[1:]] == [  # type: ignore[index]
        b"./", *(e.path + (b"/" if e.is_dir else b"") for e in entries[1:])]


def test_eos_item_4_directories_alone_and_nothing_at_all(tmp_path: Path) -> None:
    """EOS crashes on a tree of directories, and says nothing of an empty one."""
    manifest = written(tmp_path, [ROOT, ManifestEntry(b"a", stat.S_IFDIR), ManifestEntry(b"a/b", stat.S_IFDIR)])
    assert [e.path for _, e in manifest.entries(manifest.behind_directories())] == []
    assert len(eos(manifest)) == 4
    empty = written(tmp_path, [ROOT])
    assert (empty.header.directories, empty.header.files) == (0, 0)
    assert len(eos(empty)) == 2


def test_the_names_of_states_are_those_of_eos() -> None:
    assert eosfile.marker("create", True) == b".archive.init"
    assert eosfile.marker("put", True) == b".archive.put.done"
    assert eosfile.marker("purge", False) == b".archive.purge.err"
    assert set(eosfile.MARKERS) >= {b".archive.get.done", b".archive.get.err", b".archive.delete.err"}
