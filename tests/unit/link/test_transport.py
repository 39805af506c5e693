"""Which slave is meant, and what is made of ssh's and a slave host's words."""

from __future__ import annotations

import io
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gsync.base.errors import GsyncError, SlaveError, Transient, UsageError
from gsync.link import bundle, ssh
from gsync.link.link import Slave, parse_slave
from gsync.link.openssh import SshOptions, cipher_list, ssh_argv
from gsync.link.ssh import Host, remote_command, ssh_error


@pytest.mark.parametrize(("text", "slave"), [
    ("/srv/copy", Slave(b"/srv/copy")),
    ("/srv//copy/", Slave(b"/srv/copy")),
    ("/srv/a:b", Slave(b"/srv/a:b")),
    ("/n\udcff", Slave(b"/n\xff")),
    ("host:/data", Slave(b"/data", "host")),
    ("me@host:/data", Slave(b"/data", "host", "me")),
    ("me@host:/da:ta@x", Slave(b"/da:ta@x", "host", "me")),
    ("[fe80::1]:/data", Slave(b"/data", "fe80::1")),
    ("ssh://host/data", Slave(b"/data", "host")),
    ("ssh://me@host:2222/da ta", Slave(b"/da ta", "host", "me", 2222)),
    ("ssh://[::1]:22/data", Slave(b"/data", "::1", None, 22)),
    ("host::VOL_1", Slave(b"::VOL_1", "host")), ("me@host::VOL-1", Slave(b"::VOL-1", "host", "me")),
    ("::VOL", Slave(b"::VOL")), ("localhost::VOL", Slave(b"::VOL")), ("[::1]::VOL", Slave(b"::VOL", "::1")),
    ("ssh://me@host:2222::VOL", Slave(b"::VOL", "host", "me", 2222)), ("ssh://host::VOL", Slave(b"::VOL", "host")),
])
def test_slaves(text: str, slave: Slave) -> None:
    assert parse_slave(text) == slave


@pytest.mark.parametrize("text", ["/srv/copy", "host:/data", "me@host:/da ta", "ssh://me@host:2222/data",
                                  "ssh://[::1]:22/data", "[fe80::1]:/data", "me@host::VOL", "::VOL",
                                  "ssh://host:22::VOL"])
def test_a_slave_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_slave(text)) == text


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "neither"), ("copy", "neither"), ("./copy", "neither"), ("host:", "must begin with /"),
    ("host:data", "must begin with /"), ("host::", "not the name"), ("me@host::VOL/UME", "not the name"),
    ("-oProxyCommand=x:/data", "begin with -"), ("-l@host:/data", "begin with -"), ("ssh://host", "not of the form"),
    ("ssh://host:0/data", "not a port"), ("ssh://host:70000/data", "not a port"), ("ssh://:22/data", "not of the form"),
    (":/data", "neither"),
])
def test_what_is_no_slave_is_said(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_slave(text)


def test_the_fast_cipher_comes_first_and_the_others_stay() -> None:
    default = "chacha20-poly1305@openssh.com,aes128-ctr,aes128-gcm@openssh.com"
    assert cipher_list(default, default) == "aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"


def test_ciphers_of_the_users_own_stay_as_they_are() -> None:
    assert cipher_list("aes256-ctr", "aes128-ctr,aes128-gcm@openssh.com,aes256-ctr") is None
    assert cipher_list("aes256-ctr", "aes256-ctr") is None


def test_what_the_probe_says() -> None:
    host = Host.parse(["aes", "cache /home/m y/.cache/gsync", "useless 3.6.8 /usr/bin/python3 (/usr/bin/python3)",
                       "python 3.11.2 /opt/py thon/bin/python3", "rsync"])
    assert host == Host(True, "/home/m y/.cache/gsync", False, True, "/opt/py thon/bin/python3",
                        ("3.6.8 /usr/bin/python3 (/usr/bin/python3)",))
    assert Host.parse(["cache /x"]) == Host(False, "/x", False, False, None, ())


def test_the_probe_passes_any_login_shell_unharmed() -> None:
    assert not set("'\\\n!") & set(ssh.PROBE), "within single quotes these mean something to some shell"


def test_a_remote_command_line_means_exactly_the_arguments() -> None:
    argv = [b"printf", b"%s|", b"a b", b"'\"$(x)\n\xff", b"", b"-n"]
    done = subprocess.run([b"/bin/sh", b"-c", remote_command(argv)], capture_output=True, check=True)
    assert done.stdout == b"|".join([*argv[2:], b""])


def test_options_go_to_ssh() -> None:
    argv = ssh_argv(Slave(b"/", "host", None, 2222), SshOptions("/etc/my config", ("Foo=bar",), 7, 9, True))
    assert argv[:3] == ["ssh", "-F", "/etc/my config"]
    for option in ("-p2222", "-oFoo=bar", "-oConnectTimeout=7", "-oServerAliveInterval=9", "-oCompression=yes",
                   "-oBatchMode=yes"):
        assert option in argv


@pytest.mark.parametrize(("said", "fate", "words"), [
    (["ssh: connect to host h port 22: Connection refused"], Transient, "Connection refused"),
    (["ssh: Could not resolve hostname h: Name or service not known"], Transient, "resolve hostname"),
    (["Timeout, server h not responding."], Transient, "not responding"),
    (["me@h: Permission denied (publickey,password)."], SlaveError, "ssh-copy-id"),
    (["command-line: line 0: Bad configuration option: foo"], UsageError, "Bad configuration option"),
    ([], Transient, "without a word"),
])
def test_what_ssh_says_decides(said: list[str], fate: type[GsyncError], words: str) -> None:
    error = ssh_error(Slave(b"/x", "h"), SshOptions(), said)
    assert type(error) is fate
    assert words in str(error)


def test_the_bundle_is_the_same_every_time_and_holds_the_agent_alone(tmp_path: Path) -> None:
    data = bundle.zipapp()
    assert data == bundle.zipapp()
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert {"__main__.py", "gsync/__init__.py", "gsync/slave/agent.py", "gsync/slave/receive.py"} <= set(names)
    assert not {"gsync/link/client.py", "gsync/engine/batch.py"} & set(names)


def test_the_bundle_unpacks_itself_once_and_is_whole_or_not_used(tmp_path: Path) -> None:
    path = tmp_path / "agent-1.pyz"
    path.write_bytes(bundle.zipapp())

    def run(*, whole: bool) -> None:
        done = subprocess.run([sys.executable, "-v", "-I", path], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        (loaded,) = [line for line in done.stderr.splitlines() if line.startswith("import 'gsync.slave.program'")]
        assert ("zipimporter" in loaded) is not whole

    run(whole=True)
    (unpacked,) = (other for other in tmp_path.iterdir() if other != path)
    assert unpacked.name.startswith("agent-1-")
    assert stat.S_IMODE(unpacked.stat().st_mode) == 0o700
    (unpacked / "gsync" / "link" / "protocol.py").write_bytes(b"")
    run(whole=False)


@pytest.mark.parametrize(("arguments", "status", "words"), [([], 2, "usage"), (["--receive", "/no/x"], 1, "/no/x")])
def test_the_bundle_runs_alone(tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(bundle.zipapp())
    done = subprocess.run([sys.executable, "-I", path, *arguments], input="x", capture_output=True, text=True,
                          check=False)
    assert done.returncode == status
    assert words in done.stderr + done.stdout
