"""`python -m gsync.service.child PARENT MODULE ARG…` runs a module of gsync that exits when its parent does.

The kernel sends SIGTERM when the parent (its pid is the first argument) has gone, so nothing runs unsupervised. This is
a wrapper and not a preexec_fn, since Python code may not run safely between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsync.session.options import Options

_PR_SET_PDEATHSIG = 1


def child_argv(module: str, args: Sequence[str]) -> list[str]:
    """The command that runs `module` as a child of this process. -P: import nothing from the user's directory."""
    return [sys.executable, "-P", "-m", "gsync.service.child", str(os.getpid()), module, *args]


def recorder_args(volume: str, home: str, options: Options) -> list[str]:
    """The arguments that `gsync.recorder` needs for this volume (a name)."""
    return [volume, "--home", home, "--detector", options.change_detector, "--rollover", str(options.rollover_time),
            "--keep-seconds", str(options.changelog_retention), "--keep-bytes", str(options.changelog_retention_size),
            "--archive-bytes", str(options.changelog_archive_size), "--log-level", options.log_level]


def main() -> None:
    parent, module, *args = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        return  # it ended before the line above
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
