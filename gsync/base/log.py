"""Log lines: a constant event and fields, bound once: `log.info("batch synced", files=812)`.

Levels: info is one line per batch or state change, debug one per file, error means a person must act.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any


def _field(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return repr(text) if not text or not text.isprintable() or " " in text or "=" in text else text


class Log:
    """A logger with fields that go with every line."""

    def __init__(self, logger: logging.Logger, fields: dict[str, object] | None = None) -> None:
        self._logger = logger
        self._fields = fields or {}

    def bind(self, **fields: object) -> Log:
        return Log(self._logger, {**self._fields, **fields})

    @property
    def debugs(self) -> bool:
        """Whether debug lines are written; ask first where building the fields is expensive."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            parts = [event, *(f"{k}={_field(v)}" for k, v in {**self._fields, **fields}.items())]
            self._logger.log(level, "%s", " ".join(parts))

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)


def get_logger(name: str) -> Log:
    return Log(logging.getLogger(name))


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


LARGEST = 10 << 20  # bytes of a log file
KEPT = 5            # older ones beside it, the newest with .1 at the end


def setup(level: str = "INFO", path: str | None = None, *, owner: bool = False, also_stderr: bool = False) -> None:
    """Send log lines to stderr, or append them to the file `path`, or both; times in UTC. owner: this process rotates
    the file; any other process writes a line or two and exits."""
    handler: logging.Handler
    if path and owner:
        from logging.handlers import RotatingFileHandler  # not for every start of a command

        handler = RotatingFileHandler(path, maxBytes=LARGEST, backupCount=KEPT, encoding="utf-8",
                                      errors="backslashreplace")
    else:
        handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    handlers = [handler, *([logging.StreamHandler(sys.stderr)] if path and also_stderr else [])]
    for each in handlers:
        each.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("gsync")
    for before in root.handlers:
        before.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    root.propagate = False


def set_level(level: str) -> None:
    """From now on."""
    logging.getLogger("gsync").setLevel(level)
