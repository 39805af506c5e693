"""Changelog records: GlusterFS's bytes, both ways, whatever the names; damage is reported and costs nothing else."""

from __future__ import annotations

import io
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsync.base.model import ROOT_GFID, gfid_str
from gsync.changelog import records as r
from gsync.changelog.records import Data, Entry, Fop, Meta, Problem, ProblemKind, encode, read_changes, sound_end
from lab.changelogs import SAMPLE, changelog, gfid, names, read_all, records

HEADER_1_1 = b"GlusterFS Changelog | version: v1.1 | encoding : 2\n"
ROOT = gfid_str(ROOT_GFID).encode()
F, G = gfid_str(gfid(0xF)).encode(), gfid_str(gfid(0x10)).encode()


@given(st.lists(records))
def test_what_was_written_is_read(some: list[r.Record]) -> None:
    assert read_all(changelog(some)) == some


@given(st.lists(records))
def test_changes_are_the_records_without_what_a_batch_does_not_need(some: list[r.Record]) -> None:
    parts = list(read_changes(io.BytesIO(changelog(some))))
    assert [e for part in parts for e in part.entries] == [
        (record.fop, record.gfid, record.names) for record in some if isinstance(record, Entry)
    ]
    longer = (Fop.XATTROP, Fop.FXATTROP)  # of a sharded file, whose bytes are elsewhere
    assert [g for part in parts for g in part.data] == [
        record.gfid for record in some
        if isinstance(record, Data) or (isinstance(record, Meta) and record.fop in longer)
    ]
    assert [g for part in parts for g in part.meta] == [record.gfid for record in some if isinstance(record, Meta)]
    assert [problem for part in parts for problem in part.problems] == []


@pytest.mark.parametrize(
    ("record", "data"),
    [
        (
            Entry(Fop.MKDIR, gfid(0xF), ((ROOT_GFID, b"dir1"),), 16877),
            b"E%s\x004\x0016877\x000\x000\x00%s/dir1\0" % (F, ROOT),
        ),
        (
            Entry(Fop.CREATE, gfid(0x10), ((gfid(0xF), b"hello world"),), 33188),
            b"E%s\x0023\x0033188\x000\x000\x00%s/hello world\0" % (G, F),
        ),
        (Data(gfid(0x10)), b"D%s\0" % G),
        (Meta(Fop.SETATTR, gfid(0x10)), b"M%s\x0038\0" % G),
        (
            Entry(Fop.RENAME, gfid(0x10), ((gfid(0xF), b"hello world"), (gfid(0xF), b"b"))),
            b"E%s\x008\x00%s/hello world\0%s/b\0" % (G, F, F),
        ),
        (
            Entry(Fop.UNLINK, gfid(0x10), ((gfid(0xF), b"hl"),), path=b"dir1/hl"),
            b"E%s\x005\x00%s/hl\0dir1/hl\0" % (G, F),
        ),
        (Entry(Fop.UNLINK, gfid(0x10), ((gfid(0xF), b"b"),)), b"E%s\x005\x00%s/b\0\0\0" % (G, F)),
        (Entry(Fop.SYMLINK, gfid(0x10), ((gfid(0xF), b"s"),)), b"E%s\x007\x00%s/s\0" % (G, F)),
        (Entry(Fop.LINK, gfid(0x10), ((gfid(0xF), b"l"),)), b"E%s\x009\x00%s/l\0" % (G, F)),
    ],
)
def test_the_bytes_are_those_of_glusterfs(record: r.Record, data: bytes) -> None:
    assert encode(record) == data
    assert read_all(r.HEADER + data) == [record]


def test_version_1_1_has_no_path_in_removals() -> None:
    data = b"E%s\x005\x00%s/b\0" % (G, F) + b"E%s\x006\x00%s/d\0" % (G, F) + b"D%s\0" % G
    assert read_all(HEADER_1_1 + data) == [
        Entry(Fop.UNLINK, gfid(0x10), ((gfid(0xF), b"b"),)),
        Entry(Fop.RMDIR, gfid(0x10), ((gfid(0xF), b"d"),)),
        Data(gfid(0x10)),
    ]
    (part,) = read_changes(io.BytesIO(HEADER_1_1 + data))
    assert [fop for fop, _, _ in part.entries] == [Fop.UNLINK, Fop.RMDIR]


def test_a_changelog_cut_anywhere_gives_its_whole_records_and_says_torn() -> None:
    data = changelog(SAMPLE)
    ends = list(accumulate((len(encode(record)) for record in SAMPLE), initial=len(r.HEADER)))
    for cut in range(len(data)):
        whole = SAMPLE[: sum(end <= cut for end in ends[1:])]
        *found, last = [*read_all(data[:cut]), None]
        if cut in ends:
            assert found == whole
        else:
            torn = found.pop()
            assert isinstance(torn, Problem) and torn.kind is ProblemKind.TORN, cut
            assert found == whole
            assert torn.offset + torn.size == cut
            parts = list(read_changes(io.BytesIO(data[:cut])))
            assert [problem for part in parts for problem in part.problems] == [torn]
        assert last is None
        assert sound_end(io.BytesIO(data[:cut])) == (max(end for end in ends if end <= cut) if whole else 0)


@pytest.mark.parametrize("block", [1, 7, 64, 333])
def test_records_are_found_across_blocks(block: int) -> None:
    unknown = b"E%s\x0099\0junk\0" % G
    data = changelog(SAMPLE) + unknown + changelog(SAMPLE)[len(r.HEADER) :]
    found = list(r.read_records(io.BytesIO(data), block))
    assert [record for record in found if not isinstance(record, Problem)] == SAMPLE + SAMPLE
    (problem,) = (record for record in found if isinstance(record, Problem))
    assert (problem.kind, problem.offset) == (ProblemKind.UNKNOWN_FOP, len(changelog(SAMPLE)))
    assert problem.size == len(unknown)


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (b"E%s\x0099\0%s/name\0" % (G, F), ProblemKind.UNKNOWN_FOP),
        (b"E%s\x0038\0" % G, ProblemKind.UNKNOWN_FOP),  # a metadata fop in an E record
        (b"X%s\x0023\0" % G, ProblemKind.UNKNOWN_RECORD),
        (b"Dnot a gfid\0", ProblemKind.UNKNOWN_RECORD),
        (b"E%s\x005\0%s/b\0\0" % (G, F), ProblemKind.UNKNOWN_RECORD),  # no path, not even an empty one
        (b"E%s\x0023\x00331D%s\0" % (G, F), ProblemKind.UNKNOWN_RECORD),  # cut, then written on
        (bytes(5000), ProblemKind.UNKNOWN_RECORD),
    ],
)
@given(before=st.lists(records, max_size=3), after=st.lists(records, min_size=1, max_size=3))
def test_what_is_unknown_is_reported_and_skipped(
    piece: bytes, kind: ProblemKind, before: list[r.Record], after: list[r.Record]
) -> None:
    data = changelog(before) + piece + changelog(after)[len(r.HEADER) :]
    found = read_all(data)
    problem = found.pop(len(before))
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.offset, problem.size) == (kind, len(changelog(before)), len(piece))
    assert found == [*before, *after]


def test_metadata_of_an_unknown_fop_is_looked_at_and_reported() -> None:
    data = r.HEADER + b"M%s\x0099\0" % G + b"D%s\0" % F
    record, problem, following = read_all(data)
    assert (record, following) == (Meta(99, gfid(0x10)), Data(gfid(0xF)))
    assert isinstance(problem, Problem) and problem.kind is ProblemKind.UNKNOWN_FOP
    (part,) = read_changes(io.BytesIO(data))
    assert (part.meta, part.problems) == ([gfid(0x10)], [problem])


@given(names, st.sampled_from([b"D", b"M", b"E"]))
def test_a_name_that_looks_like_a_record_is_a_name(name: tuple[bytes, bytes], kind: bytes) -> None:
    disguised = (name[0], kind + G)
    some: list[r.Record] = [Entry(Fop.LINK, name[0], (disguised,)), Data(gfid(0xF))]
    assert read_all(changelog(some)) == some


def test_damage_longer_than_a_block_does_not_pile_up() -> None:
    found = read_all(changelog(SAMPLE) + bytes(5 << 20) + encode(SAMPLE[0]))
    assert [record for record in found if not isinstance(record, Problem)] == [*SAMPLE, SAMPLE[0]]
    problems = [record for record in found if isinstance(record, Problem)]
    assert sum(problem.size for problem in problems) == 5 << 20
    assert problems[0].offset == len(changelog(SAMPLE))
    for problem, following in pairwise(problems):
        assert problem.offset + problem.size == following.offset
    assert max(problem.size for problem in problems) <= 3 * (1 << 16)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", ProblemKind.TORN),
        (r.HEADER[:-1], ProblemKind.TORN),
        (b"GlusterFS Changelog | version: v1.2 | encoding : 1\nbinary", ProblemKind.HEADER),
        (b"GlusterFS Changelog | version: v2.0 | encoding : 2\n", ProblemKind.HEADER),
        (b"GlusterFS Changelog | version: v1.3 | encoding : 2\n", ProblemKind.HEADER),
        (b"root:x:0:0:root:/root:/bin/bash\n", ProblemKind.HEADER),
        (bytes(100_000), ProblemKind.HEADER),
    ],
)
def test_what_has_no_header_is_no_changelog(data: bytes, kind: ProblemKind) -> None:
    (problem,) = read_all(data)
    assert isinstance(problem, Problem) and problem.kind is kind
    assert [part.problems for part in read_changes(io.BytesIO(data))] == [[problem]]
    assert sound_end(io.BytesIO(data)) == 0


@pytest.mark.parametrize(
    "record",
    [
        Data(b"short"),
        Meta(Fop.CREATE, gfid(1)),
        Entry(Fop.SETATTR, gfid(1), ((ROOT_GFID, b"a"),)),
        Entry(Fop.LINK, gfid(1), ()),
        Entry(Fop.LINK, gfid(1), ((ROOT_GFID, b"a"), (ROOT_GFID, b"b"))),
        Entry(Fop.RENAME, gfid(1), ((ROOT_GFID, b"a"),)),
        Entry(Fop.LINK, gfid(1), ((ROOT_GFID, b"a/b"),)),
        Entry(Fop.LINK, gfid(1), ((ROOT_GFID, b"a\0b"),)),
        Entry(Fop.LINK, gfid(1), ((ROOT_GFID, b""),)),
        Entry(Fop.LINK, gfid(1), ((b"x", b"a"),)),
        Entry(Fop.UNLINK, gfid(1), ((ROOT_GFID, b"a"),), path=b""),
        Entry(Fop.UNLINK, gfid(1), ((ROOT_GFID, b"a"),), path=b"a\0b"),
        Entry(Fop.CREATE, gfid(1), ((ROOT_GFID, b"a"),), mode=-1),
    ],
)
def test_what_could_not_be_read_again_is_not_written(record: r.Record) -> None:
    with pytest.raises(ValueError):
        encode(record)
