"""Settings files: INI with the one section [gsync] (or, for `sections`, any), keys in kebab-case, each value as text.

Changing one key leaves all other lines alone, comments included, except comments between the lines of the changed
value. The meaning of keys is not known here.
"""

from __future__ import annotations

import configparser
import fcntl
import os
import re
import textwrap
from contextlib import suppress

from gsync.base.durable import make_dirs, replace_file
from gsync.base.errors import UsageError

SECTION = "gsync"
_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names in patterns need not be UTF-8


def option_name(key: str) -> str:
    """A key as in files and on the command line; underscores become hyphens."""
    return key.strip().lower().replace("_", "-")


def read(path: str) -> dict[str, str]:
    """The values in the file by option name, {} if there is no file. UsageError naming file and line."""
    found = _parsed(path, _text(path))
    for section in found:
        if section != SECTION:
            raise UsageError(f"{path}: section [{section}]: the only one is [{SECTION}]")
    return found.get(SECTION, {})


def sections(path: str) -> dict[str, dict[str, str]]:
    """The values in a file that must be there, by section and option name, in the file's order. UsageError likewise."""
    if not os.path.exists(path):
        raise UsageError(f"{path}: no such file")
    return _parsed(path, _text(path), only="SECTION")


def _parsed(path: str, text: str, only: str = SECTION) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#", ";"), strict=True,
                                          default_section="")
    parser.optionxform = option_name  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text, path)
    except configparser.MissingSectionHeaderError as exc:
        raise UsageError(f"{path}: line {exc.lineno}: there is no [{only}] above it") from None
    except configparser.DuplicateOptionError as exc:
        raise UsageError(f"{path}: line {exc.lineno}: {exc.option} is set twice") from None
    except configparser.DuplicateSectionError as exc:
        raise UsageError(f"{path}: line {exc.lineno}: there is a [{exc.section}] already") from None
    except configparser.ParsingError as exc:
        raise UsageError(f"{path}: line {exc.errors[0][0]}: not of the form OPTION = VALUE") from None
    except configparser.Error as exc:
        raise UsageError(f"{path}: {exc}") from None
    return {section: dict(parser.items(section)) for section in parser.sections()}


def change(path: str, name: str, value: str | None) -> None:
    """Set an option, or remove it (None). Durable and atomic; creates a missing file."""
    path = os.path.realpath(path)  # a link to the file stays one
    folder = os.path.dirname(path)
    try:
        make_dirs(folder)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # so that two changes at once both count, where the file system has locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            before = _text(path)
            after = changed(before, name, value)
            if after != before:
                mode = os.stat(path).st_mode & 0o777 if before else 0o600
                replace_file(path, after.encode(**_ENCODING), mode)
        finally:
            os.close(fd)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None


def changed(text: str, name: str, value: str | None) -> str:
    """The file's text with the option set to `value`, or without it."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    new = [] if value is None else written(name, value)
    found = _found(lines, name)
    if found is not None:
        first = lines[found.start]
        indent = first[:len(first) - len(first.lstrip())]
        lines[found.start:found.stop] = [indent + line for line in new]
    elif new:
        last = _end_of_section(lines)
        if last is None:
            lines += [*([""] if lines else []), f"[{SECTION}]", *new]
        else:
            lines[last:last] = new
    return "".join(line + "\n" for line in lines)


def written(name: str, value: str) -> list[str]:
    """The lines of an option; a value of several lines stands below its name."""
    parts = value.split("\n")
    if len(parts) == 1:
        return [f"{name} = {value}".rstrip()]
    return [f"{name} =", *(f"    {part}" for part in parts)]


def wrapped(text: str) -> list[str]:
    """A help text in lines that fit behind a `# `."""
    return textwrap.wrap(text, 110)


def pattern_line(pattern: str) -> str:
    """A pattern as in .gitignore, written so that the file neither strips it nor takes it for a comment."""
    if pattern.endswith("\\ "):
        pattern = pattern[:-2] + "[ ]"
    return f"[{pattern[0]}]{pattern[1:]}" if pattern[:1] in (" ", "\t", ";") else pattern


def _found(lines: list[str], name: str) -> range | None:
    """The lines of an option, as the parser takes them: what stands further in than its name belongs to its value."""
    start, indent, end = None, 0, 0
    for i, line in enumerate(lines):
        here = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip()[0] in "#;":
            continue
        match = re.match(r"\s*([A-Za-z][\w-]*)\s*=", line)
        if end and here > indent:
            end = i + 1  # of whichever option it is
            continue
        if start is not None:
            break
        indent, end = here, i + 1 if match else 0
        if match and option_name(match[1]) == name:
            start = i
    return None if start is None else range(start, end)


def _end_of_section(lines: list[str]) -> int | None:
    """Where a line can be added to the section: behind its last line that says something."""
    start = next((i for i, line in enumerate(lines) if line.strip() == f"[{SECTION}]"), None)
    if start is None:
        return None
    return max(i for i, line in enumerate(lines) if i >= start and line.strip()) + 1


def _text(path: str) -> str:
    try:
        with open(path, newline=None, **_ENCODING) as file:  # type: ignore[call-overload]
            return str(file.read())
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None
