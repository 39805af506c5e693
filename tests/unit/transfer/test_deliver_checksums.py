"""Checksum lists as sha256sum(1) writes them, and folders compared with them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsync.transfer.delivery.checksums import ChecksumList, line_of, verify

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
NAMES = [b"plain", b"a b", b" lead", b"trail ", b"*star", b"new\nline", b"cr\rx", b"end\r", b"back\\slash", b"\\n",
         b"-n", b"\xff\xfe", b"sub/deep er/x", b"x" * 255]


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    path = os.fsencode(tmp_path / "unit")
    for name in NAMES:
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(os.fsdecode(target)).write_bytes(name)
    return path


@pytest.mark.parametrize("options", [[], ["-b"], ["--tag"]])
def test_the_lists_of_sha256sum_are_read(folder: bytes, options: list[str]) -> None:
    made = subprocess.run([b"sha256sum", *map(os.fsencode, options), b"--", *NAMES], cwd=folder, capture_output=True,
                          check=True)
    Path(os.fsdecode(folder), "list").write_bytes(made.stdout)
    found = ChecksumList.parse(made.stdout)
    assert found.bad == ()
    assert sorted(found.digests) == sorted(NAMES)
    assert verify(folder, b"list").good


def test_our_lists_are_read_by_sha256sum(folder: bytes) -> None:
    text = b"".join(line_of(name, hashlib.sha256(name).hexdigest()) for name in NAMES)
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet"], input=text, cwd=folder, check=True)


@given(st.dictionaries(st.binary(min_size=1, max_size=20).filter(
    lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..")), st.just(A), max_size=8))
def test_any_name_survives(digests: dict[bytes, str]) -> None:
    assert ChecksumList.parse(b"".join(line_of(name, digest) for name, digest in digests.items())).digests == digests


def test_a_missing_last_newline_crlf_and_dots_do_not_matter() -> None:
    assert ChecksumList.parse(f"{A}  x\n{B}  y".encode()).digests == {b"x": A, b"y": B}
    assert ChecksumList.parse(f"{A}  x\r\n{B.upper()} *./y\r\n\r\n".encode()).digests == {b"x": A, b"y": B}


@pytest.mark.parametrize("line", [b"x", A[:-1].encode() + b"  x", A.encode() + b" x", A.encode() + b"  ",
                                  A.encode() + b"  /etc/passwd", A.encode() + b"  ../x", b"\\" + A.encode() + b"  a\\x",
                                  b"\\" + A.encode() + b"  a\\", b"# comment"])
def test_lines_that_say_nothing_are_told(line: bytes) -> None:
    found = ChecksumList.parse(f"{A}  ok\n".encode() + line + b"\n")
    assert (list(found.digests), len(found.bad)) == ([b"ok"], 1)
    assert found.bad[0].startswith("line 2: ")


def test_two_checksums_for_a_name_are_told() -> None:
    assert ChecksumList.parse(f"{A}  x\n{A}  x\n".encode()).bad == ()
    assert "a second, different checksum" in ChecksumList.parse(f"{A}  x\n{B}  x\n".encode()).bad[0]


def test_everything_that_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "right").write_bytes(b"a")
    (tmp_path / "wrong").write_bytes(b"a")
    (tmp_path / "more\n").write_bytes(b"a")
    (tmp_path / "link").symlink_to("right")
    (tmp_path / "list").write_text(f"{A}  right\n{B}  wrong\n{A}  gone\n{A}  link\nnonsense")
    verdict = verify(os.fsencode(tmp_path), b"list")
    assert (verdict.missing, verdict.extra, verdict.mismatching, verdict.odd) == (
        [b"gone"], [b"more\n"], [b"wrong"], [b"link"])
    assert verdict.reason() == ("list: line 5: expected DIGEST  NAME: nonsense; missing: gone; not in the list: "
                                "more\\n; checksum differs: wrong; not a file or directory: link")


@pytest.mark.parametrize(("content", "why"), [(None, "no checksum list list"), (b"", "is empty")])
def test_no_list_is_a_failure(tmp_path: Path, content: bytes | None, why: str) -> None:
    (tmp_path / "x").write_bytes(b"a")
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    verdict = verify(os.fsencode(tmp_path), b"list")
    assert not verdict.good
    assert why in verdict.reason()


def test_desi_10_files_are_read_in_pieces_of_1_mib(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(5 << 20)
    (tmp_path / "list").write_text(f"{hashlib.sha256(bytes(5 << 20)).hexdigest()}  large")
    pieces: list[int] = []
    assert verify(os.fsencode(tmp_path), b"list", pieces.append).good
    assert max(pieces) == 1 << 20
