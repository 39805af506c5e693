"""A session's checkpoint: a moment that is reached once every brick's stime has passed it."""

from __future__ import annotations

import json
import os
import time

from gsync.durable import replace_file
from gsync.errors import UsageError


class Checkpoint:
    """The file that holds it, ns since the epoch."""

    def __init__(self, path: str) -> None:
        self._path = path

    def time(self) -> int | None:
        """None if none is set. UsageError if the file is damaged."""
        try:
            with open(self._path, encoding="ascii") as file:
                return int(json.load(file)["time"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{self._path}: damaged: {exc!r}; set the checkpoint again") from exc

    def set(self, moment: int) -> None:
        """Durably."""
        data = json.dumps({"time": moment, "set": time.time_ns()}).encode("ascii") + b"\n"
        replace_file(os.fsencode(self._path), data)
