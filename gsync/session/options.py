"""A session's settings: one field per option with its default, its check and its help, and nothing elsewhere.

A value that does not pass its check, or a key that is no option, is a UsageError naming where it stands and the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from gsync.errors import UsageError

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?(?:/s)?", re.IGNORECASE)


def parse_rate(value: object) -> object:
    """Bytes per second of "500K", "10M", "1.5G" (powers of 1024) or a plain number."""
    if not isinstance(value, str):
        return value
    match = _RATE.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a rate such as 500K or 10M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        import pathspec  # most sessions have no patterns, and do not wait for it

        try:
            pathspec.GitIgnoreSpec.from_lines([pattern])
        except ValueError as exc:
            raise ValueError(f"not a pattern: {pattern!r}") from exc
    return patterns


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Options:
    """What can be set for a session. Frozen: a change makes a new one and restarts the worker."""

    sync_method: Annotated[Literal["auto", "rsync", "tarssh"], Field(description=(
        "How file data travels: rsync sends differences, tarssh whole files, auto chooses for each file."))] = "auto"
    sync_jobs: Annotated[int, Field(ge=1, le=16, description="Streams that carry file data side by side.")] = 2
    exclude: Annotated[tuple[str, ...], AfterValidator(_check_patterns), Field(description=(
        "Patterns as in .gitignore, relative to the root of the master; what they match stays out."))] = ()
    bandwidth_limit: Annotated[int, BeforeValidator(parse_rate), Field(ge=0, description=(
        "Bytes per second that file data may use, e.g. 10M; 0: no limit."))] = 0
    delete_retention: Annotated[int, Field(ge=0, description=(
        "Seconds that deleted files stay in the slave's .gsync/trash; 0: none."))] = 0
    max_delete: Annotated[int, Field(ge=0, description=(
        "Hold deletes when one batch would remove more files than this; 0: never."))] = 0
    adopt: Annotated[bool, Field(description=(
        "Take over what the slave holds already, by comparing, when it is no gsync slave yet."))] = False
    slave_timeout: Annotated[int, Field(ge=5, le=86400, description=(
        "Seconds of silence after which the connection to the slave counts as lost."))] = 120
    ssh_config: Annotated[str, Field(description="File that ssh reads instead of ~/.ssh/config.")] = ""
    ssh_port: Annotated[int, Field(ge=0, le=65535, description=(
        "Port of the slave's ssh server; 0: as the slave's address or ssh's own settings say."))] = 0
    compression: Annotated[bool, Field(description="Compress what goes over ssh.")] = False
    changelog_batch_size: Annotated[int, Field(ge=1, description="Bytes of changelogs that make one batch.")] = 727040
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description=(
        "What goes to the session's log."))] = "INFO"

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Options:
        """The options with these values; `where` (a file, the command line) goes into the UsageError."""
        try:
            return cls(**values)
        except ValidationError as exc:
            raise UsageError(f"{where}: {_first_complaint(exc)}") from exc


def _first_complaint(exc: ValidationError) -> str:
    error = exc.errors(include_url=False)[0]
    key = str(error["loc"][0]) if error["loc"] else "?"
    if error["type"] == "unexpected_keyword_argument":
        return f"{key}: there is no such option"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key}: {error['input']!r}: {message}"
