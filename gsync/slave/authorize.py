"""`agent --authorize`: adds the line on stdin to this account's ~/.ssh/authorized_keys, once.

Removes an older line with the same key, or with the same purpose (its comment) and one of gsync's forced commands.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress

from gsync.base.durable import replace_file

_LINE = re.compile(r'restrict,command="(?:[^"\\]|\\.)* --forced (?:[^"\\]|\\.)*" '
                   r'(ssh-ed25519 [A-Za-z0-9+/=]+) (gsync .*)')


def main() -> int:
    line = sys.stdin.readline().rstrip("\n")
    found = _LINE.fullmatch(line)
    if found is None:
        print("not a line for a key of gsync's", file=sys.stderr)
        return 2
    folder = os.path.expanduser("~/.ssh")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    path = os.path.realpath(os.path.join(folder, "authorized_keys"))
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            before = file.read()
        mode = os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        before, mode = "", 0o600
    lines = [other for other in before.splitlines() if not _is_replaced(other, *found.groups())]
    after = "\n".join([*lines, line]) + "\n"
    if after != before:
        replace_file(path, after.encode("utf-8", "surrogateescape"), mode)
    print(path)
    return 0


def _is_replaced(line: str, key: str, comment: str) -> bool:
    other = _LINE.fullmatch(line)
    return (other is not None and other[2] == comment) or f" {key} " in f" {line} "
