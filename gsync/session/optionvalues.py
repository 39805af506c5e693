"""Reads and checks the values of options as people write them: sizes, durations, patterns, options of rsync and ssh.

Readers pass on what is not text, for the check of the type. Checks return the value, or ValueError says why it is
wrong.
"""

from __future__ import annotations

import re
import shlex

from gsync.base.times import parse_duration, parse_size
from gsync.sync.timetable import Timetable


def size_option(value: object) -> object:
    """Bytes of a size's text; numbers are left to the type's check."""
    return parse_size(value) if isinstance(value, str) else value


def parse_bandwidth(value: object) -> object:
    """A timetable's text as it was written, or the bytes per second of a number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return str(int(value))
    if isinstance(value, str):
        Timetable.parse(value)
        return " ".join(value.split())
    return value


def duration_option(value: object) -> object:
    """Seconds of a duration's text. A bare number is of seconds: files of before have such, and GlusterFS's options."""
    if not isinstance(value, str):
        return value
    seconds = parse_duration(value, bare="s")
    return int(seconds) if seconds == int(seconds) else seconds


def pattern_lines(value: object) -> object:
    """One pattern per line; neither empty ones nor comments, as in .gitignore."""
    lines = value.split("\n") if isinstance(value, str) else value
    if not isinstance(lines, (list, tuple)):
        return value
    return tuple(line for line in lines if not isinstance(line, str) or (line.strip() and not line.startswith("#")))


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        import pathspec  # most sessions have no patterns, and do not wait for it

        if "\n" in pattern:
            raise ValueError(f"not a pattern: {pattern!r}")
        try:
            pathspec.GitIgnoreSpec.from_lines([pattern])
        except ValueError as exc:
            raise ValueError(f"not a pattern: {pattern!r}") from exc
    return patterns


def check_words(value: str) -> str:
    try:
        shlex.split(value)
    except ValueError as exc:
        raise ValueError(f"{exc} (quotes are as in a shell)") from None
    return value


_PER_BOX = "gsync sets it itself"
_RSYNC_REFUSED = {
    "-n": "it would send nothing", "--dry-run": "it would send nothing",
    "-e": "the data uses the session's connection; see ssh-command",
    "--rsh": "the data uses the session's connection; see ssh-command", "--files-from": _PER_BOX,
    "--bwlimit": "see bandwidth-limit",
    "--list-only": "it would send nothing", "--daemon": "gsync starts no daemon",
    "--remove-source-files": "gsync never changes the master", "--backup": "it would leave extra files at the slave",
    "-b": "it would leave extra files at the slave", "-u": "it would leave outdated files at the slave",
    "--update": "it would leave outdated files at the slave", "--existing": "it would leave new files empty",
    "--ignore-existing": "it would leave outdated files at the slave",
    "--size-only": "it would leave outdated files at the slave", "--max-size": "it would leave files out",
    "--min-size": "it would leave files out", "--exclude": "see exclude", "--filter": "see exclude",
    "-f": "see exclude", "--exclude-from": "see exclude", "--no-inplace": _PER_BOX,
    "--append": "it could leave files that differ",
}


def check_rsync_options(value: str) -> str:
    for word in shlex.split(check_words(value)):
        name = word.partition("=")[0]
        if not word.startswith("-"):
            raise ValueError(f"{word!r} is not an option of rsync; write options that take a value as --option=value")
        if name in _RSYNC_REFUSED or name.startswith(("--del", "--no-")):
            raise ValueError(f"{word}: not allowed: {_RSYNC_REFUSED.get(name, 'gsync decides that')}")
    return value


_SSH_SET = {
    "batchmode", "clearallforwardings", "connecttimeout", "controlmaster", "controlpath", "controlpersist", "port",
    "compression", "escapechar", "permitlocalcommand", "remotecommand", "requesttty", "serveralivecountmax",
    "serveraliveinterval", "forwardagent", "forwardx11"}
_SSH_FLAGS = {"-i": "IdentityFile", "-c": "Ciphers", "-m": "MACs", "-J": "ProxyJump", "-b": "BindAddress"}


def ssh_words(value: str) -> tuple[str, ...]:
    """The `Name=value` settings in a text of ssh's options: -oName=value, -i FILE, -c CIPHERS, -m, -J, -b.

    ValueError: something else, or what gsync sets itself.
    """
    settings: list[str] = []
    words = shlex.split(check_words(value))
    while words:
        word = words.pop(0)
        flag, rest = word[:2], word[2:]
        if flag not in ("-o", *_SSH_FLAGS):
            raise ValueError(f"{word!r}: allowed are ssh's options -o, {', '.join(_SSH_FLAGS)}; "
                             "put others into a configuration file of ssh (ssh-config)")
        if not rest:
            if not words:
                raise ValueError(f"{word!r}: its value is missing")
            rest = words.pop(0)
        setting = rest if flag == "-o" else f"{_SSH_FLAGS[flag]}={rest}"
        name = re.split(r"[=\s]", setting, maxsplit=1)[0].lower()
        if name in _SSH_SET:
            raise ValueError(f"{setting}: gsync sets {name} itself")
        settings.append(setting)
    return tuple(settings)


def check_ssh_options(value: str) -> str:
    ssh_words(value)
    return value


def check_program(value: str) -> str:
    import os
    import shutil

    if not value or (os.sep in value and not os.path.isabs(value)) or shutil.which(value) is None:
        raise ValueError("no such executable program")
    return value


def check_ionice(value: str) -> str:
    if not re.fullmatch(r"|none|idle|best-effort(:[0-7])?", value):
        raise ValueError("should be idle, best-effort, best-effort:0 … best-effort:7, or none")
    return value


def capitals(value: object) -> object:
    return value.upper() if isinstance(value, str) else value
