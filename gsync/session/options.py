"""The table of options: type, default, check and help of each, and the processes it restarts; nowhere else.

Fields are in snake_case; files, the command line and messages use kebab-case. An unknown name, or a value that fails
its check, is a UsageError that names the place and the option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from gsync.base import ini
from gsync.base.errors import UsageError
from gsync.base.times import written_duration, written_size
from gsync.session.glusteroptions import NOT_HERE
from gsync.session.optionvalues import (
    capitals,
    check_ionice,
    check_patterns,
    check_program,
    check_rsync_options,
    check_ssh_options,
    duration_option,
    parse_bandwidth,
    pattern_lines,
    size_option,
)

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class Kind(StrEnum):
    """How a value is written."""

    TEXT = "text"
    SIZE = "size"
    DURATION = "duration"
    PATTERNS = "patterns"
    RATES = "rates"
    CAPITALS = "capitals"


class Scope(StrEnum):
    """The files that an option may be in: any, or only those of a node."""

    SESSION = "session"
    NODE = "node"


@dataclass(frozen=True)
class About:
    """An option's properties besides type and default. restarts: worker, recorder, monitor; queue: read when gsync
    queue run or publish run starts. check: returns the value, or ValueError says why it is wrong."""

    help: str
    restarts: tuple[str, ...] = ("worker",)
    scope: Scope = Scope.SESSION
    kind: Kind = Kind.TEXT
    least: float | None = None
    most: float | None = None
    check: Callable[[Any], Any] | None = None
    unsafe: str = ""        # the value that must be confirmed when set, and why
    gluster: str = ""       # another name that GlusterFS has for it


_NODE = Scope.NODE
_QUEUE = ("queue",)
_LEVELS = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


@dataclass(frozen=True)
class Options:
    """All settings. Frozen: a change makes a new one, and restarts the processes that depend on it."""

    # how data travels
    sync_method: Annotated[Literal["auto", "rsync", "tarssh"], About(
        "How file data is sent. rsync sends differences, tarssh sends whole files, auto chooses for each file.")] \
        = "auto"
    sync_jobs: Annotated[int, About("Number of parallel streams for file data.", least=1, most=16)] = 2
    bandwidth_limit: Annotated[str, About(
        "Limit for file data in bytes per second, such as 10M. 0 means no limit. It may depend on the local time: in "
        "'0; Mon-Fri 08:00-18:00 10M; Sat,Sun 50M' the last entry that matches applies.", kind=Kind.RATES)] = "0"
    compression: Annotated[bool, About("Compress the ssh connection.")] = False
    rsync_options: Annotated[str, About(
        "Additional options for rsync. For example --compress-choice=zstd --checksum-choice=xxh3.",
        check=check_rsync_options)] = ""
    rsync_command: Annotated[str, About("The rsync program on this host.", check=check_program)] = "rsync"
    log_rsync_performance: Annotated[bool, About("Log the statistics of each rsync transfer.")] = False

    # what is replicated
    exclude: Annotated[tuple[str, ...], About(
        "Patterns of files to leave out, as in .gitignore. One per line, relative to the root of the master. The "
        "patterns of a session replace those of the node.",
        kind=Kind.PATTERNS, check=check_patterns)] = ()
    sync_xattrs: Annotated[bool, About("Replicate extended attributes. If false, gsync leaves the slave's alone.")] \
        = True
    sync_acls: Annotated[bool, About("Replicate POSIX ACLs. If false, gsync leaves the slave's alone.")] = True
    ignore_deletes: Annotated[bool, About(
        "Keep files at the slave that were deleted on the master. Renames and replacements are still replicated. After "
        "the option is reset, the next crawl of the whole tree deletes them.",
        unsafe="files deleted on the master then stay at the slave, which is no longer an exact copy")] = False
    delete_retention: Annotated[int, About(
        "How long deleted files stay in the slave's .gsync/trash. 0 deletes them at once.", kind=Kind.DURATION,
        least=0)] = 0
    max_delete: Annotated[int, About(
        "Hold deletes if a batch would remove more entries. They wait for `gsync hold approve`. 0 holds none.",
        least=0)] = 0
    adopt: Annotated[bool, About(
        "Take over an existing copy at the slave. gsync compares it with the master and sends only what differs. This "
        "applies only to a directory that is not a gsync slave yet.")] = False
    max_sync_retries: Annotated[int, About(
        "Immediate retries of a file that could not be sent. After these it counts as a failure, which gsync retries "
        "later.", gluster="max-rsync-retries", least=0, most=100)] = 2

    # when
    changelog_batch_size: Annotated[int, About(
        "Size of the changelogs in one batch, in bytes.", kind=Kind.SIZE, least=1)] = 727040
    change_interval: Annotated[float, About(
        "Minimum time between two batches while following live. A file that changes several times within it is sent "
        "once. 0 sends changes at once.", kind=Kind.DURATION, least=0, most=3600)] = 0

    # the connection to the slave
    slave_timeout: Annotated[int, About(
        "Silence after which the slave counts as unreachable. It applies to both ends of the connection.",
        kind=Kind.DURATION, gluster="secondary-timeout", least=5, most=86400)] = 120
    connection_timeout: Annotated[int, About(
        "Timeout for connecting to the slave's host.", kind=Kind.DURATION, least=1, most=3600)] = 60
    ssh_port: Annotated[int, About(
        "Port of the slave's ssh server. 0 uses the port of the slave's address or of the ssh configuration.",
        least=0, most=65535)] = 0
    ssh_command: Annotated[str, About("The ssh program on this host.", check=check_program)] = "ssh"
    ssh_options: Annotated[str, About(
        "Additional options for ssh. Allowed are -oNAME=VALUE, -i FILE, -c CIPHERS, -m MACS, -J HOST and -b ADDRESS.",
        check=check_ssh_options)] = ""
    ssh_config: Annotated[str, About("Configuration file of ssh, instead of ~/.ssh/config.")] = ""

    # the processes
    log_level: Annotated[_LEVELS, About(
        "Lowest level of messages in the session's log. In the node's settings it also applies to the logs of the "
        "recorders and the monitor.",
        restarts=("worker", "recorder", "monitor"), kind=Kind.CAPITALS)] = "INFO"
    nice: Annotated[int, About("CPU niceness of the worker, as for nice(1).", least=0, most=19)] = 0
    ionice: Annotated[str, About(
        "I/O priority of the worker, as for ionice(1). idle, best-effort, or best-effort:0 (highest) to best-effort:7 "
        "(lowest).",
        check=check_ionice)] = ""
    worker_timeout: Annotated[int, About(
        "Silence after which the monitor restarts a process. It kills a worker or recorder that is silent for longer.",
        kind=Kind.DURATION, least=10, most=86400)] = 300

    # of the node
    replica_failover_interval: Annotated[float, About(
        "How often a passive worker checks the active one. It takes over if the active one is gone.",
        kind=Kind.DURATION, least=0.1, most=3600)] = 1
    use_meta_volume: Annotated[bool, About(
        "Keep the sessions in a directory shared by several nodes. If one node fails, another takes over.",
        scope=_NODE, restarts=("monitor",))] = False
    meta_volume_mnt: Annotated[str, About(
        "Mount point of the shared directory.", scope=_NODE, restarts=("monitor",))] = "/run/gluster/shared_storage"
    change_detector: Annotated[Literal["auto", "fanotify", "inotify"], About(
        "How recorders detect changes. auto uses the first that works.", scope=_NODE, restarts=("recorder",))] = "auto"
    rollover_time: Annotated[float, About(
        "Maximum time until a recorder writes a changelog. On a quiet tree it writes earlier.", scope=_NODE,
        restarts=("recorder",), kind=Kind.DURATION, least=0.1, most=3600)] = 1
    changelog_retention: Annotated[int, About(
        "How long to keep changelogs. Those that a session still needs are kept longer.", scope=_NODE,
        restarts=("recorder",), kind=Kind.DURATION, least=60)] = 7 * 86400
    changelog_retention_size: Annotated[int, About(
        "Size of the changelogs to keep per volume, in bytes. Those that a session still needs are kept beyond it.",
        scope=_NODE, restarts=("recorder",), kind=Kind.SIZE, least=0)] = 1 << 30
    changelog_archive_size: Annotated[int, About(
        "Size of the archive of old changelogs per volume, in bytes. It has one tar file a month. 0 keeps none.",
        scope=_NODE, restarts=("recorder",), kind=Kind.SIZE, least=0)] = 256 << 20

    # bounded transfers
    queue_jobs: Annotated[int, About(
        "Number of parallel jobs of `gsync queue run`. A job is a group of transfers of one owner between two stores.",
        scope=_NODE,
        restarts=_QUEUE, least=1, most=64)] = 4
    queue_max_retries: Annotated[int, About(
        "Retries of a transfer or publication before it is FAILED. Waiting for a store that is down does not "
        "count.", scope=_NODE, restarts=_QUEUE, least=0, most=10000)] = 3
    queue_retry_pause: Annotated[float, About(
        "Pause before the first retry in the queue. Each further pause is twice as long, up to an hour.",
        scope=_NODE, restarts=_QUEUE, kind=Kind.DURATION, least=0, most=3600)] = 5
    queue_job_timeout: Annotated[float, About(
        "Time without progress after which a job is given up. The queue retries its transfers.",
        scope=_NODE, restarts=_QUEUE, kind=Kind.DURATION, least=1, most=30 * 86400)] = 600
    queue_history: Annotated[float, About(
        "How long the queue remembers completed requests. Failed ones stay.", scope=_NODE, restarts=_QUEUE,
        kind=Kind.DURATION, least=0)] = 30 * 86400
    publish_min_files: Annotated[int, About(
        "Publish a running request once this many files arrived. A request that has ended is published as a whole.",
        scope=_NODE,
        restarts=_QUEUE, least=1)] = 100
    publish_max_age: Annotated[float, About(
        "Publish a running request once a file waited this long. See publish-min-files.", scope=_NODE,
        restarts=_QUEUE, kind=Kind.DURATION, least=0)] = 18_800
    publish_interval: Annotated[float, About(
        "How often `gsync publish run` looks for new files.", scope=_NODE, restarts=_QUEUE, kind=Kind.DURATION,
        least=0.1, most=86400)] = 10

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Options:
        """The options with these values; `where` (a file, the command line) goes into the UsageError."""
        checked: dict[str, Any] = {}
        for key, value in values.items():
            row = table().get(option_name(key))
            if row is None:
                raise UsageError(f"{where}: {option_name(key)}: {unknown(option_name(key))}")
            checked[row.field] = value if row.is_free and type(value) is row.type else _checked(row, value, where)
        return cls(**checked)


def option_name(field: str) -> str:
    return field.replace("_", "-")


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    field: str
    type: Any
    about: About
    default: Any
    takes: str      # what can be set, for people

    @property
    def is_free(self) -> bool:
        """Whether the option accepts every value of its type."""
        about = self.about
        return about.kind is Kind.TEXT and about.least is None and about.most is None and about.check is None

    def text(self, value: Any) -> str:
        """The value as in a file."""
        if self.about.kind is Kind.PATTERNS:
            return "\n".join(ini.pattern_line(pattern) for pattern in value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if self.about.kind is Kind.SIZE:
            return written_size(value)
        if self.about.kind is Kind.DURATION:
            return written_duration(value)
        return str(value)


@cache
def table() -> dict[str, Row]:
    """All options by name, in the order in which they are shown."""
    rows = {}
    hints = get_type_hints(Options, include_extras=True)
    for field in dataclasses.fields(Options):
        annotation, about = get_args(hints[field.name])
        name = option_name(field.name)
        rows[name] = Row(name, field.name, annotation, about, field.default, _takes(annotation, about))
    return rows


def _takes(annotation: Any, about: About) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    least, most = about.least, about.most

    def text(number: float) -> str:
        return written_duration(number) if about.kind is Kind.DURATION else str(number)

    bounds = "" if not least and most is None else f", {text(least or 0)} to {text(most)}" if most is not None else \
        f", at least {text(least or 0)}"
    if about.kind is not Kind.TEXT:
        words = {Kind.SIZE: "a size such as 500K, 10M or 1G", Kind.PATTERNS: "patterns",
                 Kind.RATES: "[DAYS] [HH:MM-HH:MM] RATE; …",
                 Kind.DURATION: "a duration such as 30s, 5m, 12h or 7d"}[about.kind]
        return words + (bounds if about.kind is Kind.DURATION else "")
    if annotation is bool:
        return "true | false"
    return "a number" + bounds if annotation is int else "text"


def find(name: str) -> Row:
    """The option of this name (or GlusterFS's name for it). UsageError if there is none, with the reason or a similar
    name."""
    wanted = ini.option_name(name)
    row = table().get(wanted) or next((row for row in table().values() if wanted and row.about.gluster == wanted), None)
    if row is not None:
        return row
    raise UsageError(f"{wanted}: {unknown(wanted)}")


def unknown(name: str) -> str:
    """Why there is no such option, or which one may have been meant."""
    import difflib

    if name in NOT_HERE:
        return f"gsync does not have this option of GlusterFS: {NOT_HERE[name]}"
    near = difflib.get_close_matches(name, [*table()], n=1, cutoff=0.7)
    return "no such option" + (f"; did you mean {near[0]}?" if near else "; `gsync config help` lists them")


# The library that checks values is imported when there is one to check: most runs have none, and it takes longer to
# import than all the rest of the start.

_READ = {Kind.SIZE: size_option, Kind.DURATION: duration_option, Kind.PATTERNS: pattern_lines,
         Kind.RATES: parse_bandwidth, Kind.CAPITALS: capitals}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    """The check of this option's values: read as people write it, then type, bounds, check."""
    from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter

    row = table()[name]
    about = row.about
    steps: list[Any] = [BeforeValidator(_READ[about.kind])] if about.kind in _READ else []
    if about.least is not None or about.most is not None:
        steps.append(Field(ge=about.least, le=about.most))
    if about.check is not None:
        steps.append(AfterValidator(about.check))
    annotated: Any = Annotated[row.type, *steps] if steps else row.type
    return TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))


def _checked(row: Row, value: object, where: str) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(row.name).validate_python(value)
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise UsageError(f"{where}: {row.name}: {error['input']!r}: {message}") from exc
