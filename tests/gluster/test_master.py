"""A GlusterFS volume as master, a plain tree as slave: hybrid, history and live, on real bricks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.gluster.site import GlusterSite, gluster_site
from lab.trees import acl

pytestmark = [pytest.mark.gluster, pytest.mark.root]

NAMES = ["plain", "ümläut", "new\nline", "cr\r", "-dash", "per%20cent", "x" * 255, os.fsdecode(b"\xff\xfe"), " space "]


def changes(root: Path, tag: str, inherited: bool = True) -> None:
    """Something of every kind, below root/<tag>. inherited: a default ACL too. On a brick that is healed after it was
    set, the file system applies it to what is older: then the bricks differ, and so do the mounts."""
    top = root / tag
    top.mkdir()
    for name in NAMES:
        (top / name).write_text(f"{tag} {name!r}")
    deep = top / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(os.urandom(300_000))
    (top / "empty").touch()
    (top / "link").symlink_to("a/b/c/file")
    (top / "hard").hardlink_to(deep / "file")
    os.mkfifo(top / "fifo")
    os.chown(top / "plain", 1234, 4321)
    os.chmod(top / "empty", 0o4711)
    os.setxattr(top / "plain", "user.tag", tag.encode())
    os.setxattr(top / "empty", "system.posix_acl_access", acl({1234: 6}))
    if inherited:
        os.setxattr(deep, "system.posix_acl_default", acl({4321: 5}))
    os.utime(top / "empty", ns=(10**18, 10**18 + 123456789))
    write_as_before(top / "as before", b"a" * 5000)
    os.rename(top / "plain", top / "renamed")
    os.rename(top / "a" / "b", top / "moved")
    os.rename(top / "link", top / "a" / "link")
    (top / "gone").write_text("x")
    (top / "gone").unlink()
    (top / "gone-dir").mkdir()
    (top / "gone-dir").rmdir()


def write_as_before(file: Path, content: bytes) -> None:
    """What tells only by its content that it was written: mounts that keep something in mind take it for the same."""
    with file.open("r+b" if file.exists() else "wb") as stream:
        stream.write(content)
    os.utime(file, ns=(10**18, 10**18))


def change_older(root: Path, tag: str) -> None:
    """What `changes` made under this tag is written to, renamed, removed."""
    top = root / tag
    with (top / "renamed").open("a") as file:
        file.write("more")
    (top / "empty").write_text("not empty")
    write_as_before(top / "as before", b"b" * 5000)
    (top / "hard").unlink()
    (top / "moved" / "c" / "file2").hardlink_to(top / "moved" / "c" / "file")
    os.rename(top / "moved", root / f"{tag}-moved")
    (top / "-dash").unlink()
    os.removexattr(top / "renamed", "user.tag")
    (top / "fifo").unlink()
    (top / "fifo").mkdir()
    (top / "a" / "link").unlink()
    (top / "a").rmdir()


def all_crawls(site: GlusterSite) -> None:
    changes(site.master, "hybrid")
    site.start()
    site.settle("hybrid")
    changes(site.master, "live")
    change_older(site.master, "hybrid")
    site.settle("live")
    site.stop()
    changes(site.master, "history")
    change_older(site.master, "live")
    site.go_on()
    site.settle("history")
    assert site.no_failures()


@pytest.mark.parametrize("shape", ["replica 2", "distribute 2 x replica 2", "disperse 3", "arbiter"])
def test_hybrid_live_and_history(tmp_path: Path, shape: str) -> None:
    with gluster_site(tmp_path, shape) as site:
        all_crawls(site)
        states = sorted((brick["subvolume"], brick["state"]) for brick in site.report())
        active = [subvolume for subvolume, state in states if state == "Active"]
        assert active == sorted({subvolume for subvolume, _ in states}), states


