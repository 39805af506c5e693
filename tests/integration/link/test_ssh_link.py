"""The ssh link against a real sshd: what it brings along, what it refuses, and what it says when the line is cut."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gsync.base.errors import GsyncError, SlaveError, Transient
from gsync.link import hostkeys, ssh
from gsync.link.client import SlaveClient
from gsync.link.link import Slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
from lab import REPOSITORY
from lab.sshd import HOST, Sshd

VOLUME = "00000000-0000-0000-0000-00000000c0de"


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """The remote side's cache folder, where the test can see it."""
    return tmp_path / "remote cache"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder where the remote side looks for programs first."""
    (tmp_path / "programs").mkdir()
    return tmp_path / "programs"


@pytest.fixture
def sshd(tmp_path: Path, own_cache: Path, programs: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd", environment={"XDG_CACHE_HOME": str(own_cache),
                                              "PATH": f"{programs}:{os.environ['PATH']}"}) as sshd:
        yield sshd


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def options(sshd: Sshd, *extra: str) -> SshOptions:
    return SshOptions(str(sshd.client_config), extra)


def slave(path: Path | str = "/") -> Slave:
    return Slave(os.fsencode(path), HOST)


def refusal(sshd: Sshd, *extra: str) -> GsyncError:
    with pytest.raises(GsyncError) as caught:
        SshLink(slave(), options(sshd, *extra)).close()
    return caught.value


def test_a_program_gets_its_arguments_and_pipes_unchanged(sshd: Sshd) -> None:
    link = SshLink(slave(), options(sshd))
    channel = link.spawn([b"sh", b"-c", b'cat; printf "%s|" "$@"; echo oops >&2', b"-", b"a b", b"'\n\xff$x"])
    data = bytes(range(256)) * 1000
    channel.write(data)
    channel.end_input()
    assert channel.stdout.read() == data + b"a b|'\n\xff$x|"
    assert channel.end() == 0
    assert channel.said() == ["oops"]
    channel.close()
    link.close()


def test_the_agent_is_brought_along_once(sshd: Sshd, own_cache: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    root.mkdir()
    for _ in range(2):
        link = SshLink(slave(root), options(sshd))
        client = SlaveClient(link)
        assert client.hello(VOLUME, "v", "s", 1).caps.symlink
        client.close()
        link.close()
    (agent,) = (own_cache / "gsync").glob("*.pyz")
    assert agent.name.startswith("agent-")
    assert agent.suffix == ".pyz"
    assert stat.S_IMODE(agent.stat().st_mode) == 0o600


def test_a_torn_agent_is_never_used(sshd: Sshd, own_cache: Path) -> None:
    link = SshLink(slave(), options(sshd))
    (agent,) = (own_cache / "gsync").iterdir()
    whole = agent.read_bytes()
    agent.unlink()
    channel = link.spawn([b"/bin/sh", b"-c", ssh.PUSH.encode(), b"gsync", os.fsencode(agent.parent),
                          os.fsencode(agent.name), b"%d" % len(whole)])
    channel.write(whole[:-1])
    channel.end_input()
    assert channel.end() == 1
    channel.close()
    link.close()
    assert list(agent.parent.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_is_said(sshd: Sshd, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    error = refusal(sshd)
    assert isinstance(error, SlaveError)
    assert "cannot put the agent into" in str(error)


@pytest.mark.parametrize("slave_has_aes", [True, False])
def test_the_fast_cipher_is_used_unless_the_slave_has_no_aes(sshd: Sshd, programs: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch, slave_has_aes: bool
                                                             ) -> None:
    monkeypatch.setattr(ssh, "has_aes", lambda: True)
    script(programs / "grep", f"exit {0 if slave_has_aes else 1}\n")  # the probe looks for aes in /proc/cpuinfo
    log, memory = tmp_path / "ssh.log", tmp_path / "ssh.json"
    script(tmp_path / "ssh", f'echo "$*" >>{log}\nexec ssh "$@"\n')
    fast = "aes128-gcm@openssh.com"

    def opened(*extra: str) -> list[str | None]:
        """The first cipher that each connection asked for; None if it left that to ssh."""
        log.write_text("")
        SshLink(slave(), replace(options(sshd, *extra), command=str(tmp_path / "ssh")), memory).close()
        asked = [re.search("-oCiphers=([^, ]+),", line) for line in log.read_text().splitlines() if " -M " in line]
        return [cipher and cipher[1] for cipher in asked]

    assert opened() == ([fast] if slave_has_aes else [fast, None])
    assert opened() == ([fast] if slave_has_aes else [None])
    assert opened("Ciphers=aes256-ctr") == [None]


def test_an_unknown_host_key_is_refused_with_its_fingerprint(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    shown = subprocess.run(["ssh-keygen", "-lf", sshd.host_key], capture_output=True, text=True, check=True).stdout
    error = refusal(sshd)
    assert isinstance(error, SlaveError)
    assert shown.split()[1] in str(error)
    assert "--accept-host-key" in str(error)
    assert sshd.known_hosts.read_text() == ""


def test_a_host_key_is_accepted_only_if_it_is_the_expected_one(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("other.example ssh-ed25519 AAAA")
    with pytest.raises(SlaveError, match="not SHA256:wrong"):
        hostkeys.accept_host_key(slave(), options(sshd), "SHA256:wrong")
    assert sshd.known_hosts.read_text() == "other.example ssh-ed25519 AAAA"
    key = hostkeys.host_key_fingerprint(slave(), options(sshd))
    for _ in range(2):
        hostkeys.accept_host_key(slave(), options(sshd), key)
    assert len(sshd.known_hosts.read_text().splitlines()) == 2
    SshLink(slave(), options(sshd)).close()


def test_a_changed_host_key_is_refused(sshd: Sshd) -> None:
    name, kind, _ = sshd.known_hosts.read_text().split()
    other = sshd.identity.with_suffix(".pub").read_text().split()[1]
    sshd.known_hosts.write_text(f"{name} {kind} {other}\n")
    error = refusal(sshd)
    assert isinstance(error, SlaveError)
    assert "CHANGED" in str(error)
    assert f"ssh-keygen -R '{name}'" in str(error)
    assert hostkeys.host_key_fingerprint(slave(), options(sshd)) in str(error)


def test_no_permission_is_said(sshd: Sshd) -> None:
    (sshd.dir / "authorized_keys").write_text("")
    error = refusal(sshd)
    assert isinstance(error, SlaveError)
    assert "Permission denied" in str(error)


def test_a_host_that_does_not_answer_may_do_so_later(sshd: Sshd) -> None:
    sshd.stop()
    error = refusal(sshd)
    assert isinstance(error, Transient)
    assert "Connection refused" in str(error)


def test_a_host_without_a_fitting_python_is_refused(sshd: Sshd, programs: Path) -> None:
    for name in ("python3", *(f"python3.{minor}" for minor in range(9, 15))):
        script(programs / name, f"echo 3.8.10 {programs / name}\nexit 1\n")
    error = refusal(sshd)
    assert isinstance(error, SlaveError)
    assert "Python 3.9" in str(error)
    assert "/python" in str(error), "it says what was found"


def test_greetings_of_the_remote_shell_do_no_harm(tmp_path: Path) -> None:
    greeting = r"echo Welcome to the machine; echo end; eval \"$SSH_ORIGINAL_COMMAND\""
    with Sshd(tmp_path / "greets", forced_command=greeting) as sshd:
        SshLink(slave(), options(sshd)).close()


def test_a_lost_connection_is_transient_and_says_what_ssh_said(sshd: Sshd) -> None:
    link = SshLink(slave(), options(sshd))
    channel = link.spawn([b"cat"])
    channel.write(b"x")
    assert channel.stdout.read(1) == b"x"
    sshd.drop_connections()
    assert channel.stdout.read(1) == b""
    error = link.error(channel)
    assert isinstance(error, Transient)
    assert "closed" in str(error)
    channel.close()
    link.close()


def test_a_server_that_allows_one_session_per_connection_serves_all_the_same(tmp_path: Path) -> None:
    with Sshd(tmp_path / "narrow", max_sessions=1) as sshd:
        link = SshLink(slave(), options(sshd))
        channels = [link.spawn([b"cat"]) for _ in range(3)]
        for channel in channels:
            channel.write(b"x")
            assert channel.stdout.read(1) == b"x"
            channel.close()
        link.close()


def test_nothing_is_left_behind(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:  # the path of a socket has to be short
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        link = SshLink(slave(), options(sshd))
        channel = link.spawn([b"cat"])
        (control,) = Path(runtime, "gsync").iterdir()
        assert control.is_socket()
        channel.close()
        link.close()
        assert list(Path(runtime, "gsync").iterdir()) == []


def test_a_link_whose_process_is_killed_takes_everything_down(sshd: Sshd, tmp_path: Path) -> None:
    program = tmp_path / "dies.py"
    program.write_text(f"""
import os, signal, sys
from gsync.link.link import Slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
link = SshLink(Slave(b"/", {HOST!r}), SshOptions({str(sshd.client_config)!r}))
channel = link.spawn([b"sh", b"-c", b"echo $$; exec cat"])
print(channel.stdout.readline().decode().strip(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    root = REPOSITORY
    done = subprocess.run(["python3", program], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True,
                          text=True, check=False)
    pid = int(done.stdout)
    while os.path.exists(f"/proc/{pid}") or sshd.session_pids():
        time.sleep(0.01)
