"""What filling and removing names does, whatever the slave is: one contract for directories and volumes.

tests/unit/slave/test_desired.py holds directories and a volume in memory to it, tests/gluster/test_slave_volume.py real
volumes. A test works in a directory of its own, `top`.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsync.base.model import Gfid
    from lab.slave_side import NamesSide

DIR = stat.S_IFDIR | 0o755


class NamesContract:
    def test_new_directories_in_each_other_come_in_one_page(self, side: NamesSide, top: Gfid) -> None:
        a, b, c = (side.new_gfid() for _ in range(3))
        rows = [side.row(name, gfid, above, DIR) for name, gfid, above in ((b"a", a, top), (b"b", b, a), (b"c", c, b))]
        assert side.fill(*rows) == ["made"] * 3
        assert side.listed(top) == {}
        assert side.fill(*rows) == ["ok"] * 3
        assert (side.listed(top), side.listed(a), side.listed(b)) == ({b"a": a}, {b"b": b}, {b"c": c})

    def test_files_may_go_straight_into_a_new_directory_only(self, side: NamesSide, top: Gfid) -> None:
        folder = side.new_gfid()
        row = side.row(b"d", folder, top, DIR)
        inside = [side.row(b"f", side.new_gfid(), folder), side.row(b"g", side.new_gfid(), folder, nlink=2)]
        assert side.fill(row, *inside) == ["made", "direct", "new"]
        assert side.fill(row) == ["ok"]
        assert side.fill(*inside) == ["new", "new"]

    def test_specials_are_made_complete(self, side: NamesSide, top: Gfid) -> None:
        rows = [side.row(b"s", side.new_gfid(), top, stat.S_IFLNK | 0o777, target=b"nowhere"),
                side.row(b"f", side.new_gfid(), top, stat.S_IFIFO | 0o640)]
        assert side.fill(*rows) == ["ok", "ok"]
        assert side.listed(top) == {row.bname: row.gfid for row in rows}

    def test_a_row_that_cannot_be_done_hurts_no_other(self, side: NamesSide, top: Gfid) -> None:
        good = side.row(b"good", side.new_gfid(), top, stat.S_IFIFO | 0o600)
        answer = side.filled([side.row(b"no kind", side.new_gfid(), top, 0o600), good,
                              side.row(b"no target", side.new_gfid(), top, stat.S_IFLNK | 0o777)])
        assert answer.answers == ["error", "ok", "error"]
        assert [(error.row, error.errno) for error in answer.errors] == [(0, errno.EINVAL), (2, errno.EINVAL)]
        assert side.listed(top) == {b"good": good.gfid}

    def test_hard_links_come_and_go(self, side: NamesSide, top: Gfid) -> None:
        gfid = side.file(b"a", b"x", top)
        other = side.folder(b"d", top)
        assert side.fill(side.row(b"b", gfid, top, nlink=3), side.row(b"c", gfid, other, nlink=3)) == ["ok", "ok"]
        assert side.listed(top) == {b"a": gfid, b"b": gfid, b"d": other}
        assert side.remove((top, b"a"), (top, b"b")) == []
        assert side.listed(other) == {b"c": gfid}
        assert side.holds(gfid, b"x")
        assert side.remove((other, b"c")) == [gfid]
        assert side.knows(gfid)
        side.commit()
        assert not side.knows(gfid)

    def test_a_last_name_is_kept_if_that_is_asked_for(self, side: NamesSide, top: Gfid) -> None:
        gfid, folder = side.file(b"a", b"x", top), side.folder(b"d", top)
        assert side.fill(side.row(b"b", gfid, top, nlink=2)) == ["ok"]
        assert side.remove((top, b"a"), (top, b"b"), (top, b"d"), keep_last=True) == []
        assert side.listed(top) == {b"b": gfid, b"d": folder}

    def test_a_renamed_file_is_linked_then_unlinked(self, side: NamesSide, top: Gfid) -> None:
        gfid = side.file(b"a", b"x", top)
        assert side.fill(side.row(b"b", gfid, top)) == ["ok"]
        assert (side.vacated, side.displaced) == ([], [])
        assert side.remove((top, b"a")) == []
        assert side.listed(top) == {b"b": gfid}

    def test_a_renamed_directory_moves_with_its_content(self, side: NamesSide, top: Gfid) -> None:
        folder, elsewhere = side.folder(b"d", top), side.folder(b"e", top)
        file = side.file(b"f", b"x", folder)
        assert side.fill(side.row(b"moved", folder, elsewhere, DIR)) == ["ok"]
        assert side.vacated == [(top, b"d")]
        assert side.listed(top) == {b"e": elsewhere}
        assert (side.listed(elsewhere), side.listed(folder)) == ({b"moved": folder}, {b"f": file})

    def test_directories_that_were_looked_into_move(self, side: NamesSide, top: Gfid) -> None:
        a = side.folder(b"a", top)
        b = side.folder(b"b", a)
        c = side.folder(b"c", b)
        assert side.listed(c) == {}
        assert side.fill(side.row(b"b2", b, top, DIR)) == ["ok"]
        assert side.listed(c) == {}
        assert side.fill(side.row(b"a2", a, c, DIR)) == ["ok"]
        assert side.listed(a) == {}
        assert side.remove((top, b"b2")) == [b]
        assert side.listed(top) == {}

    def test_filling_again_changes_nothing(self, side: NamesSide, top: Gfid) -> None:
        gfid, folder = side.file(b"a", b"x", top), side.folder(b"d", top)
        for _ in range(2):
            assert side.fill(side.row(b"a", gfid, top), side.row(b"d", folder, top, DIR)) == ["ok", "ok"]
            assert (side.vacated, side.displaced) == ([], [])
            assert side.remove((top, b"never"), (side.new_gfid(), b"never")) == []

    def test_a_name_that_another_inode_has_is_replaced(self, side: NamesSide, top: Gfid) -> None:
        old, new = side.file(b"a", b"old", top), side.new_file(b"new")
        row = side.row(b"a", new, top)
        assert side.fill(row) == ["new"]
        side.send(row)
        assert side.listed(top) == {b"a": old}
        assert side.fill(row) == ["ok"]
        assert side.displaced == [old]
        assert side.listed(top) == {b"a": new}
        assert side.holds(new, b"new")
        assert side.holds(old, b"old"), "in limbo"

    def test_a_rename_onto_a_file_replaces_it_though_it_has_other_names(self, side: NamesSide, top: Gfid) -> None:
        first, second = side.file(b"a", b"1", top), side.file(b"b", b"2", top)
        assert side.fill(side.row(b"b2", second, top, nlink=2)) == ["ok"]
        assert side.fill(side.row(b"b", first, top)) == ["ok"]
        assert side.displaced == []
        assert side.listed(top) == {b"a": first, b"b": first, b"b2": second}
        assert side.holds(second, b"2")

    def test_a_full_directory_gives_way_to_a_file_and_a_file_to_a_directory(self, side: NamesSide, top: Gfid) -> None:
        folder, file = side.folder(b"d", top), side.file(b"f", b"x", top)
        inside = side.file(b"in it", b"y", folder)
        assert side.fill(side.row(b"d", file, top)) == ["ok"]
        assert side.displaced == [folder]
        other = side.folder(b"e", top)
        assert side.fill(side.row(b"f", other, top, DIR)) == ["ok"]
        assert side.listed(top) == {b"d": file, b"f": other}
        side.commit()
        side.wait_gone(folder, inside)

    def test_a_directory_replaces_a_full_one_which_may_come_back(self, side: NamesSide, top: Gfid) -> None:
        old, new = side.folder(b"d", top), side.folder(b"e", top)
        file = side.file(b"x", b"x", old)
        assert side.fill(side.row(b"d", new, top, DIR)) == ["ok"]
        assert side.listed(top) == {b"d": new}
        assert side.displaced == [old]
        assert side.fill(side.row(b"back", old, top, DIR)) == ["ok"]
        assert side.vacated == []
        assert side.listed(old) == {b"x": file}

    def test_two_directories_exchange_their_names(self, side: NamesSide, top: Gfid) -> None:
        a, b = side.folder(b"a", top), side.folder(b"b", top)
        rows = [side.row(b"a", b, top, DIR), side.row(b"b", a, top, DIR)]
        side.fill(*rows)
        assert side.fill(*rows) == ["ok", "ok"]
        assert side.listed(top) == {b"a": b, b"b": a}

    def test_two_files_exchange_their_names(self, side: NamesSide, top: Gfid) -> None:
        a, b = side.file(b"a", b"1", top), side.file(b"b", b"2", top)
        rows = [side.row(b"a", b, top), side.row(b"b", a, top)]
        side.fill(*rows)
        assert side.fill(*rows) == ["ok", "ok"]
        assert side.listed(top) == {b"a": b, b"b": a}
        assert side.holds(a, b"1")
        assert side.holds(b, b"2")

    def test_a_symlink_is_replaced_by_a_directory_of_its_name(self, side: NamesSide, top: Gfid) -> None:
        link = side.new_gfid()
        assert side.fill(side.row(b"s", link, top, stat.S_IFLNK | 0o777, target=b"x")) == ["ok"]
        folder = side.folder(b"s", top)
        assert side.listed(top) == {b"s": folder}
        assert side.fill(side.row(b"s2", link, top, stat.S_IFLNK | 0o777, target=b"x")) == ["ok"]
        assert side.listed(top) == {b"s": folder, b"s2": link}

    def test_parents_that_are_missing_and_circles_are_told(self, side: NamesSide, top: Gfid) -> None:
        assert side.fill(side.row(b"x", side.new_gfid(), side.new_gfid())) == ["parent"]
        a = side.folder(b"a", top)
        b = side.folder(b"b", a)
        assert side.fill(side.row(b"in b", a, b, DIR)) == ["cycle"]
        assert side.fill(side.row(b"in a", a, a, DIR)) == ["cycle"]
        side.remove((top, b"a"))
        assert side.fill(side.row(b"x", side.new_gfid(), b)) == ["parent"]

    def test_a_directory_that_the_same_page_detaches_is_not_filled(self, side: NamesSide, top: Gfid) -> None:
        for number, new in enumerate((side.folder(b"e", top), side.file(b"e2", b"x", top))):
            old, file = side.folder(b"d%d" % number, top), side.file(b"f%d" % number, b"x", top)
            mode = DIR if number == 0 else stat.S_IFREG | 0o644
            rows = [side.row(b"d%d" % number, new, top, mode), side.row(b"x", file, old)]
            assert side.fill(*rows) == ["ok", "parent"]
            assert side.displaced == [old]

    def test_files_do_not_go_straight_into_what_lies_below_a_new_directory(self, side: NamesSide, top: Gfid) -> None:
        above, below = side.new_gfid(), side.new_gfid()
        rows = [side.row(b"a", above, top, DIR), side.row(b"b", below, above, DIR)]
        assert side.fill(*rows) == ["made", "made"]
        one, two = (side.row(name, side.new_gfid(), below) for name in (b"f", b"g"))
        assert side.fill(one, rows[1], two) == ["direct", "ok", "new"]

    def test_a_name_that_the_page_has_put_right_already_is_left_alone(self, side: NamesSide, top: Gfid) -> None:
        folder, file = side.folder(b"d", top), side.file(b"f", b"x", top)
        rows = [side.row(b"d2", folder, top, DIR), side.row(b"f2", file, top, nlink=2)]
        assert side.fill(*rows, *rows) == ["ok"] * 4
        assert (side.vacated, side.displaced) == ([(top, b"d")], [])
        assert side.listed(top) == {b"d2": folder, b"f": file, b"f2": file}

    def test_names_are_removed_from_a_detached_directory_too(self, side: NamesSide, top: Gfid) -> None:
        folder = side.folder(b"d", top)
        file = side.file(b"f", b"x", folder)
        assert side.remove((top, b"d"), since=3) == [folder]
        assert side.remove((folder, b"f"), since=3) == [file]
        assert side.fill(side.row(b"d", folder, top, DIR)) == ["ok"]
        assert side.listed(folder) == {}

    def test_what_a_later_stime_may_want_stays_in_limbo(self, side: NamesSide, top: Gfid) -> None:
        gfid = side.file(b"a", b"x", top)
        assert side.remove((top, b"a"), since=1 << 61) == [gfid]
        side.commit(1 << 60)
        assert side.knows(gfid)
        assert side.fill(side.row(b"b", gfid, top)) == ["ok"]
        assert side.holds(gfid, b"x")

    def test_what_is_unfinished_goes_with_a_commit(self, side: NamesSide, top: Gfid) -> None:
        old, folder = side.folder(b"old", top), side.new_gfid()
        row = side.row(b"new", folder, top, DIR)
        assert side.fill(row, side.row(b"moved", old, folder, DIR)) == ["made", "ok"]
        assert side.listed(top) == {}
        side.commit(0)
        assert not side.knows(folder)
        assert side.knows(old), "it waits in limbo/old"
        assert side.fill(side.row(b"old", old, top, DIR)) == ["ok"]
