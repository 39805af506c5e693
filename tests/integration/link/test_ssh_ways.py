"""The user's own ssh set-up holds: aliases, ports and users, hosts in between, an ssh-agent with an encrypted key."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import SlaveError, Transient
from gsync.link import hostkeys
from gsync.link.client import SlaveClient
from gsync.link.link import parse_slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
from lab.sshd import Sshd

VOLUME = "00000000-0000-0000-0000-00000000c0de"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("jump")) as sshd:
        yield sshd


def works(slave: str, options: SshOptions) -> bool:
    """Whether the agent there takes the slave tree."""
    link = SshLink(parse_slave(slave), options)
    try:
        client = SlaveClient(link)
        try:
            return client.hello(VOLUME, "v", "s", 1).free > 0
        finally:
            client.close()
    finally:
        link.close()


def config(path: Path, sshd: Sshd, host: str, *more: str) -> SshOptions:
    """An ssh configuration with `host` for this server, and more lines."""
    settings = [f"HostName 127.0.0.1\nPort {sshd.port}\nUser {sshd.user}\nIdentitiesOnly yes\nIdentityAgent none\n"
                f"UserKnownHostsFile {path}.known\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"]
    if not any(line.startswith("IdentityFile") for line in more):
        settings.append(f"IdentityFile {sshd.identity}\n")
    with path.open("a") as file:
        file.write(f"Host {host}\n" + "".join(settings) + "".join(f"{line}\n" for line in more))
    with open(f"{path}.known", "a") as file:
        file.write(sshd.known_hosts.read_text())
    return SshOptions(str(path))


def test_an_alias_stands_for_host_port_and_user(sshd: Sshd, tmp_path: Path) -> None:
    options = config(tmp_path / "config", sshd, "backup-*")
    (tmp_path / "copy 1").mkdir()
    assert works(f"backup-1:{tmp_path}/copy 1", options)


def test_the_address_may_name_user_and_port(sshd: Sshd, tmp_path: Path) -> None:
    options = config(tmp_path / "config", sshd, "*")
    (tmp_path / "config").write_text((tmp_path / "config").read_text().replace(f"Port {sshd.port}", "Port 1"))
    (tmp_path / "copy").mkdir()
    assert works(f"ssh://{sshd.user}@127.0.0.1:{sshd.port}{tmp_path}/copy", options)


def test_settings_for_ssh_hold(sshd: Sshd, tmp_path: Path) -> None:
    """ssh-options and ssh-command as the session has them."""
    known = f"UserKnownHostsFile={sshd.known_hosts}"
    program = tmp_path / "my ssh"
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/used\nexec ssh "$@"\n')
    program.chmod(0o755)
    (tmp_path / "copy").mkdir()
    options = SshOptions("/dev/null", (known, f"IdentityFile={sshd.identity}", f"Port={sshd.port}",
                                       f"User={sshd.user}"), connect_timeout=5, command=str(program))
    assert works(f"127.0.0.1:{tmp_path}/copy", options)
    assert (tmp_path / "used").exists()


def test_through_a_host_in_between(sshd: Sshd, jump: Sshd, tmp_path: Path) -> None:
    config(tmp_path / "config", jump, "jump")
    options = config(tmp_path / "config", sshd, "far", "ProxyJump jump")
    (tmp_path / "copy").mkdir()
    before = (jump.dir / "sshd.log").read_text().count("Accepted publickey")
    assert works(f"far:{tmp_path}/copy", options)
    assert (jump.dir / "sshd.log").read_text().count("Accepted publickey") > before
    (known := Path(f"{tmp_path}/config.known")).write_text(jump.known_hosts.read_text())
    slave = parse_slave("far:/")
    key = hostkeys.host_key_fingerprint(slave, options)
    with pytest.raises(SlaveError, match=rf"far:/: host key is not known; compare {key.replace('+', '.')}"):
        SshLink(slave, options)
    hostkeys.accept_host_key(slave, options, key)
    SshLink(slave, options).close()
    text = known.read_text()
    known.write_text("")
    with pytest.raises(SlaveError, match=rf"host key of \[127.0.0.1\]:{jump.port}, on the way there, is not known"):
        SshLink(slave, options)
    path = tmp_path / "config"
    path.write_text(path.read_text().replace("StrictHostKeyChecking yes\n", ""))  # then ssh does not say whose key
    with pytest.raises(SlaveError, match="the host key of jump, on the way there, is not known"):
        SshLink(slave, options)
    known.write_text(text)
    keys = jump.dir / "authorized_keys"
    before_that = keys.read_text()
    keys.write_text("")
    with pytest.raises(SlaveError, match=r"jump, on the way there: ssh: .*Permission denied"):
        SshLink(slave, options)
    keys.write_text(before_that)
    jump.stop()
    with pytest.raises(Transient, match=r"ssh: .*Connection refused"):
        SshLink(slave, options)
    jump.start()


def test_an_encrypted_key_in_an_ssh_agent(sshd: Sshd, tmp_path: Path) -> None:
    key, socket, ask = tmp_path / "encrypted", tmp_path / "agent", tmp_path / "ask"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "pass phrase", "-f", key], check=True)
    ask.write_text("#!/bin/sh\necho pass phrase\n")
    ask.chmod(0o700)
    keys = sshd.dir / "authorized_keys"
    before = keys.read_text()
    keys.write_text(key.with_suffix(".pub").read_text())
    options = config(tmp_path / "config", sshd, "far", f"IdentityFile {key}", f"IdentityAgent {socket}")
    text = (tmp_path / "config").read_text()
    (tmp_path / "config").write_text(text.replace("IdentityAgent none\n", ""))
    (tmp_path / "copy").mkdir()
    try:
        with subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL) as agent:
            try:
                while not socket.exists():
                    time.sleep(0.01)
                with pytest.raises(SlaveError, match="needs a key that works without a question"):
                    SshLink(parse_slave("far:/"), options)
                subprocess.run(["ssh-add", "-q", str(key)], check=True, stdin=subprocess.DEVNULL,
                               env={**os.environ, "SSH_AUTH_SOCK": str(socket), "SSH_ASKPASS": str(ask),
                                    "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"})
                assert works(f"far:{tmp_path}/copy", options)
            finally:
                agent.terminate()
    finally:
        keys.write_text(before)


def test_a_stand_by_notices_that_its_connection_has_gone(sshd: Sshd) -> None:
    link = SshLink(parse_slave("gsync-test:/"), SshOptions(str(sshd.client_config)))
    assert link.alive()
    sshd.drop_connections()
    end = time.monotonic() + 60
    while link.alive():
        assert time.monotonic() < end
        time.sleep(0.01)
    link.close()


def test_python_is_the_one_that_runs_the_agent(sshd: Sshd) -> None:
    link = SshLink(parse_slave("gsync-test:/"), SshOptions(str(sshd.client_config)))
    assert subprocess.run([link.python, "-c", "import sys; sys.exit(sys.version_info < (3, 9))"], check=False
                          ).returncode == 0
    link.close()
