"""The test tools themselves: a comparison that misses something would make every other test worthless."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import REPOSITORY
from lab.images import FsImage
from lab.sshd import HOST, Sshd
from lab.trees import MIB, Churn, acl, compare, make_everything, opened, rsync_diff, scan, wait_until_equal, walk

PRIVILEGED = os.geteuid() == 0
TOOLS = REPOSITORY / "tools"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("everything") / "tree"
    make_everything(root, 1, PRIVILEGED)
    return root


def _copy(everything: Path, to: Path) -> Path:
    """An exact copy, without the part that rsync cannot reach."""
    argv = ["rsync", "-aHAXS", "--modify-window=-1", "--exclude=/deep", f"{everything}/", f"{to}/"]
    subprocess.run(argv, check=True)
    return to


@pytest.fixture
def copy(everything: Path, tmp_path: Path) -> Path:
    return _copy(everything, tmp_path / "copy")


def test_everything_is_in_the_tree(everything: Path) -> None:
    entries = scan(everything)
    found = entries.values()
    kinds = {entry.kind for entry in found}
    assert kinds >= {"file", "directory", "symlink", "FIFO", "socket"}
    assert any(entry.size and not entry.allocated for entry in found if entry.kind == "file")
    assert any(0 < entry.allocated < entry.size for entry in found)
    assert any(len(path) > 4096 for path in entries)
    assert any(len(path.split(b"/")[-1]) == 255 for path in entries)
    assert any(b"\n" in path for path in entries) and any(b"\xff" in path for path in entries)
    assert {len({path for path in entries if entries[path].links == links}) for links in
            (entry.links for path, entry in entries.items() if entry.links != path)} == {2, 11}
    bits = 0
    for entry in found:
        bits |= entry.mode
    assert bits == 0o7777
    times = [entry.mtime_ns for entry in found]
    assert min(times) < 0 and max(times) > 2**31 * 10**9 and any(t % 1000 for t in times)
    xattrs = {(key, value) for entry in found for key, value in entry.xattrs.items()}
    assert ("user.empty", b"") in xattrs and any(len(value) >= 3000 for _key, value in xattrs)
    assert {"system.posix_acl_access", "system.posix_acl_default"} <= {key for key, _value in xattrs}


@pytest.mark.root
def test_everything_of_roots_is_in_the_tree(everything: Path) -> None:
    entries = scan(everything)
    keys = {key for entry in entries.values() for key in entry.xattrs}
    assert {"trusted.test", "security.test", "security.capability"} <= keys
    assert {entry.uid for entry in entries.values()} >= {0, 65534, 12345, 2**31 + 5}
    assert any(entry.mode == 0 and entry.kind == "directory" for entry in entries.values())
    assert {"character device", "block device"} <= {entry.kind for entry in entries.values()}


def test_a_tree_equals_itself_and_its_copy(everything: Path, copy: Path) -> None:
    assert compare(everything, everything, atime=True) == []
    assert compare(everything, copy, exclude=[b"deep"]) == []
    assert rsync_diff(everything, copy) == []


def _set_content_but_not_mtime(root: Path) -> None:
    path = root / "regular/small"
    st = path.stat()
    with open(path, "r+b") as file:
        file.seek(500)
        byte = file.read(1)
        file.seek(500)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def _fill_hole(root: Path) -> None:
    path = root / "regular/hole-at-end"
    st = path.stat()
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def _break_hard_link(root: Path) -> None:
    path = root / "hard-links/one/a1"
    parent = path.parent.stat()
    shutil.copy2(path, root / "copy")
    os.replace(root / "copy", path)
    os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


def _set_target(root: Path) -> None:
    path = root / "symlinks/to-file"
    path.unlink()
    path.symlink_to("targes")


def _utime(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        st = os.stat(root / name, follow_symlinks=False)
        os.utime(root / name, ns=(st.st_atime_ns, st.st_mtime_ns + 1), follow_symlinks=False)
    return change


def _set_device(root: Path) -> None:
    path = root / "specials/null"
    path.unlink()
    os.mknod(path, stat.S_IFCHR, os.makedev(1, 5))


def _replace_by_dir(root: Path) -> None:
    (root / "regular/empty").unlink()
    (root / "regular/empty").mkdir()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (_set_content_but_not_mtime, "regular/small': content"),
    "size": (lambda root: os.truncate(root / "regular/big", 5), "regular/big': size"),
    "zeros at the end": (lambda root: os.truncate(root / "regular/zeros", MIB + 1), "regular/zeros': size"),
    "sparse": (_fill_hole, "regular/hole-at-end': sparse"),
    "mode": (lambda root: os.chmod(root / "modes/4755", 0o755), "modes/4755': mode 4755 != 0755"),
    "mtime": (_utime("regular/one"), "regular/one': mtime_ns"),
    "mtime of a directory": (_utime("directories/empty"), "directories/empty': mtime_ns"),
    "mtime of a symlink": (_utime("symlinks/dangling"), "symlinks/dangling': mtime_ns"),
    "mtime of the root": (_utime("."), "'.': mtime_ns"),
    "hard link": (_break_hard_link, "hard-links/one/a1': hard link of"),
    "hard link more": (lambda root: os.link(root / "regular/odd", root / "more"), "'more': only in the second"),
    "target": (_set_target, "symlinks/to-file': target"),
    "xattr": (lambda root: os.setxattr(root / "xattrs/plain", "user.a", b"2"), "xattrs/plain': xattr 'user.a'"),
    "xattr gone": (lambda root: os.removexattr(root / "xattrs/dir", "user.empty"), "xattrs/dir': xattr 'user.empty'"),
    "ACL": (
        lambda root: os.setxattr(root / "acls/both", "system.posix_acl_default", acl({1: 0})),
        "acls/both': xattr 'system.posix_acl_default'",
    ),
    "missing": (lambda root: (root / "specials/fifo").unlink(), "specials/fifo': only in the first"),
    "more": (lambda root: (root / "directories/empty/more").touch(), "directories/empty/more': only in the second"),
    "kind": (_replace_by_dir, "regular/empty': file != directory"),
}
CHANGES_OF_ROOT: dict[str, tuple[Callable[[Path], object], str]] = {
    "owner": (lambda root: os.chown(root / "regular/one", 77, -1), "regular/one': uid 0 != 77"),
    "group": (lambda root: os.lchown(root / "symlinks/loop", -1, 88), "symlinks/loop': gid 0 != 88"),
    "trusted": (lambda root: os.setxattr(root / "regular/one", "trusted.x", b""), "regular/one': xattr 'trusted.x'"),
    "device": (_set_device, "specials/null': device 1:3 != 1:5"),
}


@pytest.fixture(scope="module")
def differences(everything: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `compare` says once every change has been made to a copy."""
    changed = _copy(everything, tmp_path_factory.mktemp("changed") / "tree")
    for change, _line in (CHANGES | CHANGES_OF_ROOT if PRIVILEGED else CHANGES).values():
        change(changed)
    return compare(everything, changed, exclude=[b"deep"])


@pytest.mark.parametrize("what", CHANGES)
def test_compare_sees_every_difference(differences: list[str], what: str) -> None:
    assert any(CHANGES[what][1] in line for line in differences), differences


@pytest.mark.root
@pytest.mark.parametrize("what", CHANGES_OF_ROOT)
def test_compare_sees_every_difference_of_roots(differences: list[str], what: str) -> None:
    assert any(CHANGES_OF_ROOT[what][1] in line for line in differences), differences


def test_compare_sees_only_differences(everything: Path, copy: Path) -> None:
    os.chmod(copy / "modes/0777", 0o700)
    assert compare(everything, copy, exclude=[b"deep"]) == ["'modes/0777': mode 0777 != 0700"]


def test_compare_sees_beyond_path_max(everything: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_everything(other, 1, PRIVILEGED)
    assert not any("deep" in line and "content" in line for line in compare(everything, other))
    for fd, name, _path, _st in walk(other / "deep"):
        if name == b"bottom":
            with opened(name, os.O_WRONLY, dir_fd=fd) as file:
                os.pwrite(file, b"changed", 0)
    changed = [line for line in compare(everything, other) if "content" in line]
    assert len(changed) == 2 and all("/bottom" in line for line in changed)


def test_rsync_diff_reports_what_differs(everything: Path, copy: Path) -> None:
    root = everything.stat()
    (copy / "more").touch()
    (copy / ".gsync").mkdir()
    os.utime(copy, ns=(root.st_atime_ns, root.st_mtime_ns))
    assert rsync_diff(everything, copy) == ["*deleting   more"]


def test_wait_until_equal_returns_what_still_differs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, ns=(0, 0))
    assert wait_until_equal(tmp_path / "a", tmp_path / "b", timeout=0) == []
    (tmp_path / "b/file").touch()
    os.utime(tmp_path / "b", ns=(0, 0))
    assert wait_until_equal(tmp_path / "a", tmp_path / "b", timeout=0) == ["'file': only in the second"]


def test_compare_tool_exits_1_on_a_difference(tmp_path: Path) -> None:
    for name in ("a", "b"):
        subprocess.run([sys.executable, TOOLS / "make-tree", tmp_path / name, "--seed", "7"], check=True)
        os.utime(tmp_path / name, ns=(0, 0))

    def compared(a: str, b: str) -> tuple[int, str]:
        argv = [sys.executable, str(TOOLS / "compare-trees"), str(tmp_path / a), str(tmp_path / b)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stdout

    assert compared("a", "a") == (0, "")
    (tmp_path / "b/regular/more").touch()
    code, output = compared("a", "b")
    assert code == 1
    assert "'regular/more': only in the second\n" in output


def _churn(tmp_path: Path, seed: int, privileged: bool) -> Churn:
    for name in ("tree", "outside"):
        (tmp_path / name).mkdir()
    return Churn(tmp_path / "tree", seed, privileged, tmp_path / "outside", max_entries=500)


@pytest.mark.parametrize("privileged", [False, pytest.param(True, marks=pytest.mark.root)])
def test_churn_does_every_operation(tmp_path: Path, privileged: bool) -> None:
    with _churn(tmp_path, 1, privileged) as churn:
        for _ in range(600):
            churn.step()
        for name in churn.operations:
            for _ in range(100):
                if churn.done[name]:
                    break
                churn.step(name)
        assert [name for name in churn.operations if not churn.done[name]] == []
    assert len(scan(tmp_path / "tree")) <= 501


def test_churn_has_an_operation_for_every_kind_of_change(tmp_path: Path) -> None:
    with _churn(tmp_path, 1, True) as churn:
        assert set(churn.operations) >= {
            "create", "write", "append", "append_for_long", "truncate", "write_mmap", "chmod", "chown", "touch",
            "set_xattr", "set_acl", "link", "unlink", "mkdir", "rmdir", "rm_rf", "rename_within", "rename_across",
            "rename_over_file", "rename_over_empty_directory", "swap", "rename_chain", "move_directory_into_sibling",
            "move_out", "move_in", "rotate_logs", "save_like_an_editor", "git_checkout", "extract_tar",
            "snapshot_by_links", "write_database",
        }


def test_several_churns_share_a_tree(tmp_path: Path) -> None:
    root, outside = tmp_path / "tree", tmp_path / "outside"
    make_everything(root, 1, PRIVILEGED)
    outside.mkdir()
    argv = [str(part) for part in (sys.executable, TOOLS / "churn", root, "--outside", outside)]
    argv += ["--seconds", "3", "--max-entries", "1200", "--seed"]
    running = [subprocess.Popen([*argv, str(seed)], stdout=subprocess.PIPE) for seed in range(3)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert all(b" done " in output for output in outputs)
    assert compare(root, root) == []


def test_sshd_lets_its_key_in(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd") as server:
        done = server.ssh("echo", "'here  I am'")
        assert (done.returncode, done.stdout) == (0, "here  I am\n"), done.stderr
        (tmp_path / "a").mkdir()
        (tmp_path / "a/new\nfile").touch()
        assert rsync_diff(tmp_path / "a", f"{HOST}:{tmp_path}/a", ssh_config=server.client_config) == []
        assert len(rsync_diff(tmp_path / "a", f"{HOST}:{tmp_path}/b", ssh_config=server.client_config)) == 3


def test_sshd_of_an_unknown_host_is_refused(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", known=False) as server:
        done = server.ssh("true")
        assert done.returncode == 255
        assert "Host key verification failed" in done.stderr
        server.learn_host_key()
        assert server.ssh("true").returncode == 0


def test_sshd_forces_the_command(tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", forced_command="echo forced: $SSH_ORIGINAL_COMMAND") as server:
        assert server.ssh("rm", "-rf").stdout == "forced: rm -rf\n"


def test_sshd_drops_connections_and_stops(tmp_path: Path) -> None:
    server = Sshd(tmp_path / "sshd")
    argv = ["ssh", "-F", str(server.client_config), HOST, "echo up; exec sleep 1000"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        server.drop_connections()
        assert client.wait() == 255
    assert server.ssh("true").returncode == 0
    server.stop()
    assert server.ssh("true").returncode == 255


@pytest.mark.root
@pytest.mark.parametrize("fstype", ["ext4", "tmpfs"])
def test_image_is_a_file_system_that_can_fill_up_and_be_read_only(tmp_path: Path, fstype: str) -> None:
    with FsImage(tmp_path / "image", 16 * MIB, fstype) as image:
        assert os.path.ismount(image.path)
        with pytest.raises(OSError, match="No space left"):
            (image.path / "big").write_bytes(bytes(17 * MIB))
        (image.path / "big").unlink()
        image.remount(read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            (image.path / "small").touch()
        image.remount(read_only=False)
        (image.path / "small").touch()
    assert not os.path.ismount(image.path)
    assert list(image.path.iterdir()) == []
