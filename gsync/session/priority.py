"""How much a process leaves to others: its share of the processor, and its turn at the disk."""

from __future__ import annotations

import ctypes
import os

from gsync.base.errors import UsageError

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282, "i686": 289}
_PROCESS = 1  # IOPRIO_WHO_PROCESS
_CLASSES = {"none": 0, "best-effort": 2, "idle": 3}


def lower(nice: int, ionice: str) -> None:
    """Of this thread and all that it starts, so call it before the first one. UsageError if the system refuses.

    nice: added to what it has; ionice: as the option, "" leaves it.
    """
    if nice:
        os.nice(nice)
    if ionice:
        name, _, level = ionice.partition(":")
        number = _SYS_IOPRIO_SET.get(os.uname().machine)
        if number is None:
            raise UsageError(f"ionice: not known how to set it on this kind of machine, {os.uname().machine}")
        value = _CLASSES[name] << 13 | int(level or ("4" if name == "best-effort" else "0"))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, _PROCESS, 0, value) != 0:
            raise UsageError(f"ionice: {ionice}: {os.strerror(ctypes.get_errno())}")
