"""A session's own key, used by gsync and used by hand by somebody who has stolen it; with the real sshd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base import rpc
from gsync.base.errors import SlaveError, Transient, UsageError
from gsync.link import account, ssh, stream
from gsync.link.client import SlaveClient
from gsync.link.link import Slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
from gsync.slave import forced_command
from gsync.slave.directory import rsync_server
from lab import REPOSITORY
from lab.place import Place
from lab.sshd import HOST, Sshd
from lab.trees import compare

VOLUME = "00000000-0000-0000-0000-00000000c0de"
ADDRESS = "127.0.0.1"
RSYNC = "--server -Ie.LsfxCIvu --stats --inplace . ."


class Key:
    """A key that is for `root` alone, and an sshd that takes it and the user's own."""

    def __init__(self, sshd: Sshd, folder: Path) -> None:
        self.sshd = sshd
        self.root = folder / "slave tree"
        self.root.mkdir()
        self.outside = folder / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        self.path = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gsync s", "-f", self.path], check=True)
        self.public = self.path.with_suffix(".pub").read_text().strip()
        self.slave = Slave(os.fsencode(self.root), HOST)
        self.own = SshOptions(str(sshd.client_config))
        self.options = SshOptions(str(sshd.client_config), identity=str(self.path))
        self.authorized = sshd.home / ".ssh/authorized_keys"
        if self.authorized.exists():
            self.authorized.unlink()
        self.line, _ = account.authorize(self.slave, self.own, self.public)

    @property
    def argv(self) -> list[str]:
        """ssh's options for the key by hand."""
        return ["-F", "none", "-i", str(self.path), "-oIdentitiesOnly=yes", "-oBatchMode=yes", "-oIdentityAgent=none",
                f"-oUserKnownHostsFile={self.sshd.known_hosts}", f"-oUser={self.sshd.user}",
                f"-oPort={self.sshd.port}"]

    def ssh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ssh", *self.argv, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=60, check=False)

    def link(self) -> SshLink:
        return SshLink(self.slave, self.options)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture
def key(sshd: Sshd, tmp_path: Path) -> Key:
    return Key(sshd, tmp_path)


def is_refused(done: subprocess.CompletedProcess[str]) -> bool:
    """By one line and nothing else."""
    return (done.returncode not in (0, 255) and done.stdout == ""
            and len([line for line in done.stderr.splitlines() if line.startswith("gsync: refused: ")]) == 1)


# used as it should be

@pytest.mark.parametrize("method", ["auto", "tarssh", "rsync"])
def test_a_run_over_the_key_makes_an_equal_tree(sshd: Sshd, tmp_path: Path, method: str) -> None:
    place = Place(tmp_path, slave_arg=f"{HOST}:{tmp_path}/slave",
                  args=("--ssh-config", sshd.client_config, "--sync-method", method))
    (place.master / "first").write_text("first")
    place.once()
    name = place.report()["name"]
    place.gsync("config", name, "set", "ssh-config", sshd.client_config)
    said = place.gsync("keys", name, "--install").stdout
    assert said.startswith(f"{HOST}: the key is installed in {sshd.home}/.ssh/")
    own = sshd.dir / "authorized_keys"
    kept = own.read_text()
    own.write_text("")  # nobody comes in with anything else now
    try:
        big = place.master / "big"
        for content in (os.urandom(6 << 20), os.urandom(6 << 20)):
            big.write_bytes(content)
            (place.master / "dir").mkdir(exist_ok=True)
            for i in range(20):
                (place.master / f"dir/{i}").write_bytes(content[:i])
            os.symlink("nowhere", place.master / f"link {content[0]} {len(os.listdir(place.master))}")
            place.once()
            assert compare(place.master, place.slave) == []
    finally:
        own.write_text(kept)
    if method != "auto":
        return
    assert place.gsync("keys", name).stdout.startswith('restrict,command="')
    before = (sshd.home / ".ssh/authorized_keys").read_text()
    place.gsync("keys", name, "--install", "--rotate")
    after = (sshd.home / ".ssh/authorized_keys").read_text()
    assert after != before
    assert after.count("gsync ") == before.count("gsync ")
    (place.master / "last").write_text("last")
    place.once()
    assert compare(place.master, place.slave) == []


def test_installing_again_changes_nothing_and_keeps_the_others(key: Key) -> None:
    key.authorized.write_text("# mine\nssh-ed25519 AAAA me@home\n" + key.authorized.read_text())
    key.authorized.chmod(0o640)
    before = key.authorized.read_text()
    assert before.endswith(f"{key.line}\n")
    account.authorize(key.slave, key.own, key.public)
    assert key.authorized.read_text() == before
    assert key.authorized.stat().st_mode & 0o777 == 0o640
    assert len(before.splitlines()) == 3


def test_the_agent_is_replaced_in_one_step(key: Key) -> None:
    path = Path(account.push_agent(key.slave, key.own))
    assert path == key.sshd.home / ".local/share/gsync/agent.pyz"
    assert list(path.parent.glob("*.pyz")) == [path]
    path.write_bytes(b"old")
    account.push_agent(key.slave, key.own)
    key.link().close()


def test_another_gsyncs_agent_is_said(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PROTOCOL", rpc.PROTOCOL + 1)
    with pytest.raises(SlaveError, match=r"another version of gsync .* protocol .* gsync keys SESSION --install"):
        key.link()


def test_a_key_for_another_directory_is_said(key: Key) -> None:
    with pytest.raises(SlaveError, match=r"the session's key is for .*/slave tree there"):
        SshLink(Slave(b"/srv/other", HOST), key.options)


def test_a_key_that_is_not_installed_is_said(key: Key) -> None:
    key.authorized.write_text("")
    with pytest.raises(SlaveError, match="the session's key cannot be used"):  # the user's own key came in
        key.link()
    config = key.sshd.client_config.read_text()
    alone = key.root.parent / "config"
    alone.write_text(re.sub(r"\n *IdentityFile .*", "", config))
    with pytest.raises(SlaveError, match="the session's key is not accepted there: gsync keys SESSION prints"):
        SshLink(key.slave, SshOptions(str(alone), identity=str(key.path)))


def test_the_line_holds_any_path(tmp_path: Path) -> None:
    line = account.authorized_line("ssh-ed25519 AAAA gsync s", Slave(b"/a b\"c'd$(x)\\e", HOST))
    found = re.fullmatch(r'restrict,command="(.*)" ssh-ed25519 AAAA gsync s', line)
    assert found is not None
    command = found[1].replace('\\"', '"')  # as sshd reads it
    out = subprocess.run(["sh", "-c", command.replace("python3 -I", "printf %s\\\\n", 1)], capture_output=True,
                         text=True, check=True).stdout
    assert out.splitlines()[-1] == "/a b\"c'd$(x)\\e"
    with pytest.raises(UsageError, match="its path has characters that authorized_keys cannot hold"):
        account.authorized_line("ssh-ed25519 AAAA gsync s", Slave(b"/a\nb", HOST))


# used by a thief

COMMANDS = [
    "sh", "id", "sh -c id", "gsync", "gsync ", "gsync shell", "gsync agent /etc", "gsync agent --receive /etc",
    "gsync agent; id", "gsync agent && id", "gsync agent\nid", "gsync agent\n", "gsync agent | sh", "gsync $(id)",
    "gsync `id`", "'gsync' agent", '"gsync" agent', "gsync  agent", " gsync agent", "gsync agent ", "gsync\tagent",
    "gsync probe x", "gsync receive ../..", "gsync receive /etc", "Gsync agent", "gsync agent\\", "gsync agent\x7f",
    "gsync agent\xff", "/usr/lib/openssh/sftp-server", "internal-sftp", "scp -t /tmp", "scp -f /etc/passwd",
    "rsync --server -e.LsfxCIvu . /tmp", "gsync rsync", "gsync rsync 1", "gsync rsync 1 ab",
    "env X=1 gsync agent", "gsync --forced /",
]
NOT_FOR_RSYNC = [
    RSYNC.replace("--server", "--server --sender"), RSYNC.replace(". .", ". /etc"), RSYNC.replace(". .", ". .."),
    RSYNC.replace(". .", ". ../../.."), RSYNC.replace(". .", ". new"), RSYNC.replace(" . .", ""),
    RSYNC.replace("--stats", "--delete"), RSYNC.replace("--stats", "--log-file=/tmp/x"),
    RSYNC.replace("--stats", "--temp-dir=/tmp"), RSYNC.replace("--stats", "--backup-dir=.."),
    RSYNC.replace("--stats", "--files-from=/etc/passwd"), RSYNC.replace("--stats", "--write-devices"),
    RSYNC.replace("--stats", "--copy-dest=/etc"), RSYNC.replace("--stats", "--daemon"),
    RSYNC.replace("--stats", "--remove-source-files"), RSYNC.replace("--stats", "."),
    *(RSYNC.replace("-Ie", f"-{letter}Ie") for letter in "lLrRdDkKaosbHXEAF"),
]


@pytest.fixture
def shared(key: Key) -> Iterator[list[str]]:
    """Options for one connection that serves many commands."""
    way = [f"-oControlPath={key.root.parent}/way", "-oControlMaster=auto", "-oControlPersist=60"]
    yield way
    key.ssh(*way, "-O", "exit", ADDRESS)


def test_no_shell_and_no_other_command(key: Key, shared: list[str]) -> None:
    assert is_refused(key.ssh("-T", ADDRESS))
    for command in COMMANDS:
        assert is_refused(key.ssh(*shared, ADDRESS, command)), command


def test_rsync_does_nothing_but_receive_where_it_belongs(key: Key, shared: list[str]) -> None:
    for words in NOT_FOR_RSYNC:
        with pytest.raises(SlaveError):
            rsync_server.check_argv(words.split())
    for words in NOT_FOR_RSYNC[:8]:
        done = key.ssh(*shared, ADDRESS, f"gsync rsync 1 {'ab' * 8} {words}")
        assert done.returncode != 0
        assert done.stdout == ""
        assert re.search(r"not allowed here|not rsync's server side|not allowed with this key", done.stderr), words


def test_nul_is_refused_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
                            ) -> None:
    """It cannot be in the environment; whatever brings it here, it is no word of ours."""
    monkeypatch.setattr(os, "environb", {b"SSH_ORIGINAL_COMMAND": b"gsync agent\0id"})
    assert forced_command.main(os.fsencode(tmp_path)) == forced_command.REFUSED
    assert "not allowed" in capsys.readouterr().err


def test_without_a_command_in_the_environment_nothing_runs(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "SSH_ORIGINAL_COMMAND"}
    code = "import sys; from gsync.slave.program import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "--forced", str(tmp_path)], env=env, capture_output=True,
                          text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == forced_command.REFUSED
    assert "it gives no shell" in done.stderr


def test_no_forwarding(key: Key) -> None:
    done = key.ssh("-W", f"{ADDRESS}:{key.sshd.port}", ADDRESS)
    assert done.returncode != 0
    assert "prohibited" in done.stderr
    done = key.ssh("-N", "-oExitOnForwardFailure=yes", "-R", f"0:{ADDRESS}:{key.sshd.port}", ADDRESS)
    assert done.returncode != 0
    assert "remote port forwarding failed" in done.stderr
    done = key.ssh("-v", "-A", "-oExitOnForwardFailure=yes", ADDRESS, "gsync nothing")
    assert is_refused(done)
    assert "agent-forwarding" not in done.stderr


@pytest.mark.skipif(shutil.which("sftp") is None, reason="no sftp")
def test_no_copying_by_other_means(key: Key, tmp_path: Path) -> None:
    remote = f"{ADDRESS}:{key.outside}/secret"
    way = " ".join(["ssh", *key.argv])
    for argv in (["sftp", *key.argv, remote, str(tmp_path / "got")],
                 ["scp", *key.argv, remote, str(tmp_path / "got")],
                 ["scp", "-O", *key.argv, remote, str(tmp_path / "got")],
                 ["scp", "-O", *key.argv, str(key.path), remote],
                 ["rsync", "-a", "-e", way, remote, str(tmp_path / "got")],
                 ["rsync", "-a", "-e", way, str(key.path), remote],
                 ["rsync", "-a", "-e", way, f"--rsync-path=gsync rsync 1 {'ab' * 8}", remote, str(tmp_path / "got")],
                 ["rsync", "-a", "-e", way, f"--rsync-path=gsync rsync 1 {'ab' * 8}", str(key.path), remote]):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0, argv
    assert not (tmp_path / "got").exists()
    assert (key.outside / "secret").read_text() == "secret"
    assert os.listdir(key.outside) == ["secret"]


def test_rsync_by_hand_writes_where_gsyncs_does_and_follows_no_symlink(key: Key, tmp_path: Path) -> None:
    link = key.link()
    client = SlaveClient(link)
    client.hello(VOLUME, "v", "s", 1)
    folder = key.root / ".gsync/limbo/link"
    (folder / "planted").symlink_to(key.outside / "secret")
    (folder / "way").symlink_to(key.outside)
    source = tmp_path / "source"
    (source / "way").mkdir(parents=True)
    for name in ("planted", "free", "way/secret", "way/new"):
        (source / name).write_text("written")
    for names, options in ((["planted", "free"], []), (["way/secret", "way/new"], ["--relative"]),
                           (["way"], ["-rlK"])):
        subprocess.run(["rsync", "--inplace", "-I", "--no-protect-args", *options, *link.rsync(1, client.ticket),
                        *names, "slave:."], cwd=source, capture_output=True, timeout=60, check=False)
    assert (folder / "free").read_text() == "written", "the way itself is open"
    assert (key.outside / "secret").read_text() == "secret"
    assert os.listdir(key.outside) == ["secret"]
    client.close()
    link.close()


@pytest.mark.parametrize("where", ["the tree", "the folder above", "gsync's state"])
def test_a_symlink_in_the_way_stops_everything(key: Key, where: str) -> None:
    link = key.link()
    client = SlaveClient(link)
    client.hello(VOLUME, "v", "s", 1)
    client.close()
    moved = {"the tree": key.root, "the folder above": key.root.parent, "gsync's state": key.root / ".gsync"}[where]
    hidden = moved.with_name("hidden")
    moved.rename(hidden)
    moved.symlink_to(key.outside if where != "the folder above" else hidden)
    before = sorted(os.listdir(hidden / "outside" if where == "the folder above" else key.outside))
    try:
        client = SlaveClient(link)
        with pytest.raises((SlaveError, Transient), match=r"symlink|own"):
            client.hello(VOLUME, "v", "s", 2)
        client.close()
        receiver = link.agent([b"--receive", b""])
        receiver.write(stream.encode_hello(1, client.ticket))
        receiver.end_input()
        assert b"ready" not in receiver.stdout.read()
        receiver.close()
        if where != "the folder above":
            assert key.ssh(ADDRESS, f"gsync rsync 1 {client.ticket} {RSYNC}").returncode != 0
    finally:
        moved.unlink()
        hidden.rename(moved)
        link.close()
    assert sorted(os.listdir(key.outside)) == before


@pytest.mark.parametrize("words", [RSYNC, RSYNC.replace("-I", "-IWSvz"), RSYNC.replace("--stats", "--bwlimit=1000"),
                                   RSYNC.replace("--stats", "--compress-choice=zstd --open-noatime")])
def test_what_gsync_asks_of_rsync_is_allowed(words: str) -> None:
    rsync_server.check_argv(words.split())


def test_it_says_what_it_says(key: Key) -> None:
    """The words of the forced program and of ssh.py are the same."""
    assert forced_command.REFUSED in ssh.NOT_FORCED
