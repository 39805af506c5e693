"""Takes from this process, and from all that it becomes or starts, the right to change files outside some folders.

Uses Landlock where the kernel has it (Linux 5.13); elsewhere it does nothing. Open files stay usable. Standard library
only, Python 3.9.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
_VERSION = 1             # flag: only report the kernel's version
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_WRITE_FILE = 1 << 1
# Removing and making of every kind, in all versions; linking across folders and truncating came later.
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)


def confine(folders: Sequence[int], files: Sequence[str] = ()) -> bool:
    """From now on this process can change only what is below these folders (descriptors), and write only to these
    files. Return whether the kernel supports that. OSError if it does, but fails."""
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        return False
    changes = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    rules = _checked(_call(_CREATE_RULESET, struct.pack("=Q", changes), 8, 0))
    try:
        for folder in folders:
            _checked(_call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", changes, folder), 0))
        for path in files:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                _checked(_call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", _WRITE_FILE, fd), 0))
            finally:
                os.close(fd)
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_call(_RESTRICT_SELF, rules, 0))
    finally:
        os.close(rules)
    return True


def _call(*arguments: object) -> int:
    return int(_libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
