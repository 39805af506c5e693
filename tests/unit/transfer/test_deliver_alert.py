"""Alerts: the mail that a server gets, the line that a command gets, and that neither can hold up anything."""

from __future__ import annotations

import email
import json
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword

from gsync.transfer.delivery.alert import Alarm
from gsync.transfer.delivery.dataset import Alerts


class Server(socketserver.ThreadingTCPServer):
    """An SMTP server that takes everything (RFC 5321, as far as it goes). silent: says nothing at all."""

    daemon_threads = True

    def __init__(self, silent: bool = False) -> None:
        self.mails: list[tuple[list[str], bytes]] = []
        self.silent = silent
        super().__init__(("127.0.0.1", 0), Session)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Session(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        if self.server.silent:
            self.rfile.read()
            return
        self.say("220 test")
        to: list[str] = []
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"RCPT":
                to.append(line.partition(b"<")[2].partition(b">")[0].decode())
            if word == b"DATA":
                self.say("354 go on")
                lines = list(iter(self.rfile.readline, b".\r\n"))
                self.server.mails.append((to, b"".join(lines)))
            if word == b"QUIT":
                self.say("221 bye")
                return
            self.say("250 fine")

    def say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(getattr(request, "param", False)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def alerts(server: Server, **more: object) -> Alerts:
    return Alerts(**{"mail_to": "a@example.org, b@example.org", "smtp_host": "127.0.0.1", "smtp_port": server.port,
                     **more})  # type: ignore[arg-type]


def test_a_mail_says_what_about_which_and_why(server: Server) -> None:
    assert Alarm(alerts(server)).tell("quarantined", "raw 20261123/00000001", "checksum differs: é\nx: \udcff")
    ((to, raw),) = server.mails
    message = email.message_from_bytes(raw, policy=default)
    assert to == ["a@example.org", "b@example.org"]
    assert message["Subject"] == "gsync deliver: quarantined: raw 20261123/00000001"
    assert message["From"] == f"gsync@{socket.gethostname()}"
    assert "checksum differs: é x: \\udcff" in message.get_content()


def test_a_name_cannot_add_headers(server: Server) -> None:
    Alarm(alerts(server)).tell("quarantined", "x\nBcc: evil@example.org\r\n\r\nbody", "why")
    ((to, raw),) = server.mails
    message = email.message_from_bytes(raw, policy=default)
    assert (to, message["Bcc"]) == (["a@example.org", "b@example.org"], None)


@pytest.mark.parametrize("server", [True], indirect=True)
def test_a_server_that_says_nothing_is_given_up(server: Server) -> None:
    began = time.monotonic()
    assert not Alarm(alerts(server, timeout=1)).tell("down", "raw", "why")
    assert time.monotonic() - began < 30


# over TLS, to a server that gives mail to nobody who does not log in

PASSWORD = "geheim"


class Inbox:
    """What aiosmtpd has taken."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: object, envelope: Envelope) -> str:
        self.mails.append(envelope)
        return "250 fine"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost that nobody trusts yet, in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
                    "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@contextmanager
def mail_server(certificate: Path, security: str) -> Iterator[tuple[Inbox, int]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inbox = Inbox()

    def known(server: object, session: object, envelope: object, mechanism: str, given: LoginPassword) -> AuthResult:
        return AuthResult(success=given == LoginPassword(b"gsync", PASSWORD.encode()))

    ways: dict[str, dict[str, Any]] = {
        "tls": {"ssl_context": context, "auth_require_tls": False}, "starttls": {"tls_context": context},
        "none": {"auth_require_tls": False}}
    controller = Controller(inbox, "127.0.0.1", port, server_hostname="localhost", auth_required=True,
                            authenticator=known, **ways[security])
    controller.start()
    try:
        yield inbox, port
    finally:
        controller.stop()


def to_localhost(port: int, security: str, tmp_path: Path) -> Alerts:
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")
    return Alerts(mail_to="a@example.org", smtp_host="localhost", smtp_port=port, smtp_user="gsync",
                  smtp_password_file=str(password), smtp_security=security)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_mail_goes_over_tls_to_a_server_that_is_trusted(certificate: Path, security: str, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(certificate, security) as (inbox, port):
        alarm = Alarm(to_localhost(port, security, tmp_path))
        assert not alarm.tell("down", "raw", "why")  # its certificate is nobody's whom this host trusts
        assert inbox.mails == []
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        assert alarm.tell("down", "raw", "why")
        (envelope,) = inbox.mails
        assert envelope.rcpt_tos == ["a@example.org"]
        assert isinstance(envelope.content, bytes)
        assert b"Subject: gsync deliver: down: raw" in envelope.content


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_server_without_tls_gets_no_password(certificate: Path, security: str, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with mail_server(certificate, "none") as (inbox, port):
        assert not Alarm(to_localhost(port, security, tmp_path)).tell("down", "raw", "why")
        assert Alarm(to_localhost(port, "none", tmp_path)).tell("down", "raw", "why")
        assert len(inbox.mails) == 1


def test_no_server_is_no_exception() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not Alarm(Alerts(mail_to="a@example.org", smtp_host="127.0.0.1", smtp_port=port)).tell("down", "raw", "why")


def test_a_command_gets_a_line_of_json(tmp_path: Path) -> None:
    command = tmp_path / "alert me"
    command.write_text(f'#!/bin/sh\ncat > {tmp_path}/got; printf "%s|" "$@" > {tmp_path}/args\n')
    command.chmod(0o755)
    assert Alarm(Alerts(command=f"'{command}' --to 'a b'")).tell("down", "raw: source", "no route", {"unit": "\udcff"})
    found = json.loads((tmp_path / "got").read_text())
    assert (found["event"], found["about"], found["reason"], found["unit"]) == (
        "down", "raw: source", "no route", "\udcff")
    assert (tmp_path / "args").read_text() == "--to|a b|"


@pytest.mark.parametrize("script", ["exit 3", "exec sleep 1000", "sleep 1000 & wait"])
def test_a_command_that_fails_or_hangs_is_given_up(tmp_path: Path, script: str) -> None:
    command = tmp_path / "alert"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    assert not Alarm(Alerts(command=str(command), timeout=1)).tell("down", "raw", "why")
