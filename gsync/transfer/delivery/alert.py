"""Alerts ask people to act: by mail, or through a command of theirs.

Promise: an alert that cannot be sent is logged, and holds up no delivery: the call returns within the time limit and
raises nothing. The caller makes sure that the same alert is sent once.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid

from gsync.base.log import get_logger
from gsync.transfer.delivery.dataset import Alerts

_log = get_logger(__name__)
_SAID = 300  # characters of a command's output


class Alarm:
    """Sends alerts as configured; without configuration it only logs them."""

    def __init__(self, settings: Alerts) -> None:
        self._settings = settings

    def tell(self, event: str, about: str, reason: str, details: Mapping[str, object] | None = None) -> bool:
        """Send an alert; return whether all configured ways worked. event: `quarantined`, `failed`, `down`, `recovered`
        and the like; about: the unit or the store."""
        _log.error(f"alert: {event}", about=about, reason=reason)
        told = True
        if self._settings.mail_to:
            told &= self._mail(event, about, reason)
        if self._settings.command:
            told &= self._run({"event": event, "about": about, "reason": reason, "host": socket.gethostname(),
                               **(details or {})})
        return told

    def _mail(self, event: str, about: str, reason: str) -> bool:
        settings = self._settings
        try:
            message = mail(settings, event, about, reason)
            with _connection(settings) as server:
                server.send_message(message)
        except (OSError, smtplib.SMTPException, ValueError) as exc:
            _log.error("cannot send mail", server=settings.smtp_host, error=exc)
            return False
        return True

    def _run(self, document: Mapping[str, object]) -> bool:
        argv = shlex.split(self._settings.command)
        line = json.dumps(document).encode("ascii") + b"\n"
        try:
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  start_new_session=True) as process:
                try:
                    said, _ = process.communicate(line, timeout=self._settings.timeout)
                except subprocess.TimeoutExpired:
                    _kill_group(process)
                    raise
        except (OSError, subprocess.TimeoutExpired) as exc:
            _log.error("alert command failed", command=argv[0], error=exc)
            return False
        if process.returncode != 0:
            _log.error("alert command failed", command=argv[0], status=process.returncode,
                       said=said.decode("utf-8", "replace").strip()[-_SAID:])
        return process.returncode == 0


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and its children, so that none of them keeps our pipe open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def mail(settings: Alerts, event: str, about: str, reason: str) -> EmailMessage:
    """The message. Text from file names becomes one line of printable text."""
    message = EmailMessage(policy=SMTP.clone(utf8=False))
    host = socket.gethostname()
    message["Subject"] = _line(f"gsync deliver: {event}: {about}")
    message["From"] = settings.mail_from.strip() or f"gsync@{host}"
    message["To"] = ", ".join(settings.mail_to.replace(",", " ").split())
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="gsync.invalid")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{_line(about)}: {event}.\n\n{_line(reason)}\n\nSent by gsync deliver on {host}; "
                        "`gsync deliver status` shows the current state.\n")
    return message


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _connection(settings: Alerts) -> smtplib.SMTP:
    """A connection to the mail server, logged in if a user is configured."""
    host, security = settings.smtp_host, settings.smtp_security
    port = settings.smtp_port or {"none": 25, "starttls": 587, "tls": 465}[security]
    if security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=settings.timeout,
                                                context=ssl.create_default_context())
    else:
        server = smtplib.SMTP(host, port, timeout=settings.timeout)
    try:
        if security == "starttls":
            server.starttls(context=ssl.create_default_context())
        if settings.smtp_user:
            with open(settings.smtp_password_file, encoding="utf-8") as file:
                password = file.readline().rstrip("\n")
            server.login(settings.smtp_user, password)
    except BaseException:
        server.close()
        raise
    return server
