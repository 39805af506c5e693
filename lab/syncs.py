"""Records the durable steps of a piece of code, in order: each fsync by its file, with renames and removals between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Syncs:
    """Notes every os.fsync of this process, and every os.rename and os.unlink between them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []  # the call, and the last part of its path
        self.look: Callable[[str], None] = lambda path: None  # called before each fsync
        fsync, rename, unlink = os.fsync, os.rename, os.unlink

        def synced(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            self.look(path)
            fsync(fd)
            self.calls.append(("fsync", Path(path).name))

        def renamed(old: str | bytes, new: str | bytes, **more: int) -> None:
            rename(old, new, **more)
            self.calls.append(("rename", Path(os.fsdecode(new)).name))

        def unlinked(path: str | bytes, **more: int) -> None:
            unlink(path, **more)
            self.calls.append(("unlink", Path(os.fsdecode(path)).name))

        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "rename", renamed)
        patch.setattr(os, "unlink", unlinked)
