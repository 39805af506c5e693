"""deliver.ini: what is delivered, from where to where, and how; one section per data set.

Options of a data set may stand in [common] for all of them. Options of [common], [alerts] and [logging] may not stand
in a data set. `${NAME}` is the environment's NAME, `$$` a dollar. A wrong value, an unknown option and a missing one
each raise a UsageError that names file, section and option. conf/deliver.ini is printed from here.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from gsync.base import ini
from gsync.base.errors import UsageError
from gsync.base.times import written_duration, written_size
from gsync.session.optionvalues import duration_option, size_option
from gsync.transfer.delivery import units

COMMON, ALERTS, LOGGING = "common", "alerts", "logging"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[^}]*)\}|(?P<bare>.?))", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Help:
    """The help of an option, for conf/deliver.ini. example: a typical value, for an option without a default."""

    text: str
    example: str = ""


def _hour(value: object) -> object:
    """Parse an hour of the day; None for `off`. Numbers above 23 also mean off: DESI's files use 30."""
    if isinstance(value, str):
        if value.strip().lower() in ("off", "never"):
            return None
        if not value.strip().isdigit():
            raise ValueError("expected an hour of the day (0 to 23) or off")
        value = int(value)
    return None if isinstance(value, int) and value > 23 else value


def _night(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            return None
        day = units.night_day(value.strip())
        if day is None:
            raise ValueError("expected a night, YYYYMMDD")
        return day
    return value


def _pattern(value: str) -> str:
    units.Pattern(value)
    return value


def _absolute(value: str) -> str:
    if value and not os.path.isabs(value):
        raise ValueError("must be an absolute path")
    return os.path.normpath(value) if value else value


def _home(value: str) -> str:
    return _absolute(os.path.expanduser(value))


def _command(value: str) -> str:
    words = shlex.split(value)  # ValueError: unbalanced quotes
    if words and os.path.isabs(words[0]) and not os.access(words[0], os.X_OK):
        raise ValueError("no such executable")
    return value


def _addresses(value: str) -> str:
    for address in value.replace(",", " ").split():
        if not re.fullmatch(r"[^@\s<>,]+@[^@\s<>,]+", address):
            raise ValueError(f"{address!r} is not a mail address")
    return value


_Duration = BeforeValidator(duration_option)
_Size = BeforeValidator(size_option)
_Path = AfterValidator(_absolute)
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True)


@dataclass(frozen=True, config=_CONFIG)
class DataSet:
    """A section: units of one kind, from one source. Any option but the first three may stand in [common]."""

    name: str
    source: Annotated[str, Field(min_length=1), Help(
        "The ready folder. A symbolic link NIGHT/EXPOSURE in it marks the directory it points to as complete. A "
        "directory of this host, HOST:/PATH, ssh://[USER@]HOST[:PORT]/PATH, or a store of `gsync store`.",
        "data1:/data/ready")]
    staging: Annotated[str, Field(min_length=1), _Path, Help(
        "Where units are pulled to and verified. For this data set alone; best on the file system of the "
        "destination, so that the move is a single rename.", "${DATA}/staging/raw")]
    destination: Annotated[str, Field(min_length=1), _Path, Help(
        "Where verified units go, each in one step.", "${DATA}/raw")]
    unit: Annotated[str, AfterValidator(_pattern), Help(
        "The form of a unit's name. {night} is YYYYMMDD, {exposure} has eight digits, any other {name} is one "
        "part of a path, {name:REGEX} gives it exactly. Units of a night (or, without one, of the first part) are "
        "backed up together.")] = units.DEFAULT
    checksum_file: Annotated[str, Help(
        "The list of SHA-256 checksums in the unit, as written by sha256sum. Empty: there is none, and only sizes "
        "are checked.")] = "checksum-{exposure}.sha256sum"
    checksum_lock: Annotated[str, _Path, Help(
        "A file on the source's host. While it exists, checksums are being written and nothing is pulled.",
        "/tmp/checksum-running")] = ""
    method: Annotated[Literal["stream", "rsync"], Help(
        "How units are transferred: with gsync's own stream, or with rsync (needed on both hosts), which resumes "
        "large files after an interruption.")] = "stream"
    on_error: Annotated[Literal["quarantine", "deliver"], Help(
        "What happens to a unit that does not match its checksum list: it is quarantined with the reason, or "
        "delivered anyway and shown as failed.")] = "quarantine"
    quarantine: Annotated[str, _Path, Help(
        "Where units are quarantined. Empty: .gsync-quarantine in the staging folder.")] = ""
    min_free: Annotated[int, Field(ge=0), _Size, Help(
        "Free space to keep in staging and destination. The data set waits, and raises an alert like an "
        "unreachable source, rather than start a unit that would leave less.")] = 0
    first_night: Annotated[date | None, BeforeValidator(_night), Help(
        "Ignore units of earlier nights, YYYYMMDD.", "20260101")] = None
    catchup: Annotated[int | None, BeforeValidator(_hour), Help(
        "Hour of the following day (UTC) at which late files of a night are fetched; off: never.")] = 14
    catchup_days: Annotated[int, Field(ge=1, le=400), Help(
        "Number of consecutive days on which to do so.")] = 1
    vault: Annotated[str, Help(
        "The store that units are backed up to: a name from `gsync store list`, such as a vault made with gsync "
        "store add tape tar:///vault/raw, or a URL. Empty: no backup.", "tape")] = ""
    vault_path: Annotated[str, Help(
        "Folder in the vault. Empty: the data set's name.")] = ""
    backup: Annotated[int | None, BeforeValidator(_hour), Help(
        "Hour of the following day (UTC) at which the units of a night are backed up; off: only with `gsync "
        "deliver backup`.")] = 20
    desi_status: Annotated[str, _Path, Help(
        "Folder in which to keep desi_transfer_status_YEAR.json, as desitransfer writes it, for scripts that read "
        "it.", "${DATA}/status")] = ""


@dataclass(frozen=True, config=_CONFIG)
class Common:
    """[common]: the daemon."""

    interval: Annotated[float, _Duration, Field(ge=0.1, le=86400), Help(
        "Pause between two checks of the sources.")] = 60
    kill_file: Annotated[str, AfterValidator(_home), Help(
        "While this file exists the daemon does nothing and exits. It is noticed within a second or two, even "
        "during a transfer.")] = "~/stop_gsync_deliver"
    timeout: Annotated[float, _Duration, Field(ge=1, le=86400), Help(
        "Silence after which a connection or command is given up.")] = 300
    max_tries: Annotated[int, Field(ge=1, le=10000), Help(
        "Number of tries, with growing pauses, before a failure counts as an error of the unit. An unreachable "
        "source costs no try.")] = 8
    retry_pause: Annotated[float, _Duration, Field(ge=0.05, le=86400), Help(
        "The first pause. Each further pause is twice as long, up to an hour.")] = 60
    ssh_config: Annotated[str, AfterValidator(_home), Help(
        "File that ssh reads instead of ~/.ssh/config.")] = ""
    rsync_command: Annotated[str, Help(
        "The rsync program of this host.")] = "rsync"
    page: Annotated[str, _Path, Help(
        "Folder for the status page (index.html and more, and status.json), for any web server or to open as a "
        "file. Empty: none.", "/var/www/html/deliver")] = ""


@dataclass(frozen=True, config=_CONFIG)
class Alerts:
    """[alerts]: who is told when a person has to act."""

    mail_to: Annotated[str, AfterValidator(_addresses), Help(
        "Mail addresses.", "operator@example.org")] = ""
    mail_from: Annotated[str, AfterValidator(_addresses), Help(
        "Sender. Empty: gsync at this host.")] = ""
    smtp_host: Annotated[str, Help(
        "Mail server.")] = "localhost"
    smtp_port: Annotated[int, Field(ge=0, le=65535), Help(
        "Its port; 0: the usual one for smtp-security.")] = 0
    smtp_security: Annotated[Literal["none", "starttls", "tls"], Help(
        "How the connection is protected. This host must trust the server's certificate; SSL_CERT_FILE in the "
        "environment names other authorities.")] = "none"
    smtp_user: Annotated[str, Help(
        "User name to log in with. Empty: no login.")] = ""
    smtp_password_file: Annotated[str, AfterValidator(_home), Help(
        "File whose first line is the password.")] = ""
    command: Annotated[str, AfterValidator(_command), Help(
        "Program that receives the alert as one line of JSON on stdin. Run without a shell; quoting works as in "
        "one.",
        "/usr/local/bin/alert --channel data")] = ""
    down_after: Annotated[float, _Duration, Field(ge=0), Help(
        "Time that a source or vault must be unreachable before an alert is raised.")] = 900
    timeout: Annotated[float, _Duration, Field(ge=1, le=3600), Help(
        "Time limit for the mail server or program.")] = 30


@dataclass(frozen=True, config=_CONFIG)
class Logging:
    """[logging]: the daemon's log."""

    filename: Annotated[str, AfterValidator(_home), Help(
        "Log file of the daemon (10 MiB, five older ones are kept). Empty: stderr.", "/var/log/gsync/deliver.log")] = ""
    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"],
                     BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
                     Help(
        "Lowest level to log.")] = "INFO"


@dataclasses.dataclass(frozen=True)
class DeliverySettings:
    """A whole file."""

    path: str
    common: Common
    alerts: Alerts
    logging: Logging
    sets: tuple[DataSet, ...]


# Options of DESI's files that have another name here, or that gsync does not need.
_ELSEWHERE = {
    "hpss": "see vault, and `gsync store add` for hsi and htar",
    "hpss-status": "gsync asks the vault itself",
    "sleep": "see interval; with a unit, such as 1m",
    "temporary": "gsync keeps what it has to remember in its state directory", "scratch": "gsync keeps what it has to "
    "remember in its state directory",
    "ssh": "see ssh-config, which can name everything",
    "size": "the log file is kept to 10 MiB", "backups": "five older log files are kept",
    "to": "see mail-to in [alerts]",
}


def read(path: str, environ: Mapping[str, str]) -> DeliverySettings:
    """Read the settings in a file; UsageError if they are invalid."""
    path = os.path.abspath(path)
    sections = {section: {option: _filled(path, section, option, value, environ) for option, value in values.items()}
                for section, values in ini.sections(path).items()}
    general = sections.pop(COMMON, {})
    own = {name: general.pop(name) for name in list(general) if name in _names(Common)}
    for name in general:
        if name in _FIRST or name not in _names(DataSet):
            raise UsageError(f"{path}: [{COMMON}] {name}: " + (
                "belongs in each data set" if name in _FIRST else _unknown(name, Common, DataSet)))
    common = _made(Common, own, path, COMMON)
    alerts = _made(Alerts, sections.pop(ALERTS, {}), path, ALERTS)
    log = _made(Logging, sections.pop(LOGGING, {}), path, LOGGING)
    if not sections:
        raise UsageError(f"{path}: no data set: add a section with source, staging and destination; see "
                         "conf/deliver.ini")
    sets = tuple(_data_set(path, name, general, values) for name, values in sections.items())
    _check_apart(path, sets)
    return DeliverySettings(path, common, alerts, log, sets)


_FIRST = ("source", "staging", "destination")


def _data_set(path: str, name: str, general: Mapping[str, str], values: Mapping[str, str]) -> DataSet:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{path}: [{name}]: a data set name may hold letters, digits and . _ @ + -")
    for option in values:
        if option in _names(Common):
            raise UsageError(f"{path}: [{name}] {option}: belongs in [{COMMON}]")
    found: DataSet = _made(DataSet, {**general, **values}, path, name, {"name": name})
    pattern = units.Pattern(found.unit)
    try:
        units.fill(found.checksum_file, dict.fromkeys(pattern.fields, "x"))
    except ValueError as exc:
        raise UsageError(f"{path}: [{name}] checksum-file: {found.checksum_file!r}: {exc}") from None
    quarantine = found.quarantine or os.path.join(found.staging, os.fsdecode(units.OURS) + "quarantine")
    return dataclasses.replace(found, quarantine=quarantine, vault_path=found.vault_path.strip("/") or name)


def _check_apart(path: str, sets: tuple[DataSet, ...]) -> None:
    """Refuse data sets that share a staging folder, and folders that contain each other."""
    seen: dict[str, str] = {}
    for each in sets:
        if each.staging in seen:
            raise UsageError(f"{path}: [{each.name}] staging: {each.staging} is also that of [{seen[each.staging]}]")
        seen[each.staging] = each.name
        for inner, outer, what in ((each.staging, each.destination, "staging"),
                                   (each.destination, each.staging, "destination"),
                                   (each.quarantine, each.destination, "quarantine")):
            if inner == outer or inner.startswith(outer.rstrip("/") + "/"):
                other = "destination" if outer == each.destination else "staging"
                raise UsageError(f"{path}: [{each.name}] {what}: {inner} is inside the {other}: keep them apart")


def _filled(path: str, section: str, option: str, value: str, environ: Mapping[str, str]) -> str:
    """Replace each ${NAME} in the value by the environment's."""
    def one(match: re.Match[str]) -> str:
        where = f"{path}: [{section}] {option}"
        if match[0] == "$$":
            return "$"
        if match["name"] is None:
            raise UsageError(f"{where}: {value!r}: write ${{NAME}}, or $$ for a dollar")
        if match["name"] not in environ:
            raise UsageError(f"{where}: not in the environment: {match['name']}")
        return environ[match["name"]]

    return _VARIABLE.sub(one, value)


def _made(kind: type[Any], values: Mapping[str, str], path: str, section: str,
          more: Mapping[str, str] | None = None) -> Any:
    try:
        return kind(**{option.replace("-", "_"): value for option, value in values.items()}, **(more or {}))
    except ValidationError as exc:
        error = exc.errors(include_url=False)[0]
        option = str(error["loc"][0]).replace("_", "-") if error["loc"] else "?"
        if error["type"] == "unexpected_keyword_argument":
            message = _unknown(option, kind)
        elif error["type"].startswith("missing"):
            message = "is missing"
        else:
            message = f"{error['input']!r}: " + error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise UsageError(f"{path}: [{section}] {option}: {message}") from None


def _names(kind: type[Any]) -> list[str]:
    return [each.name.replace("_", "-") for each in dataclasses.fields(kind) if each.name != "name"]


def _unknown(name: str, *kinds: type[Any]) -> str:
    if name in _ELSEWHERE:
        return f"no such option: {_ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, [each for kind in kinds for each in _names(kind)], n=1, cutoff=0.7)
    return "no such option" + (f"; did you mean {near[0]}?" if near else "; see conf/deliver.ini")


def sample() -> str:
    """conf/deliver.ini: every option with its help and default."""
    about = ("Settings of `gsync deliver`. A commented-out option has the value shown, or is unset where the value is "
             "marked as an example. ${NAME} is the environment variable NAME, $$ a dollar sign. Options of a data set, "
             "except source, staging and destination, may stand in [common] for all data sets.")
    lines = [f"# {line}" for line in ini.wrapped(about)]
    for section, kind, about in (
            ("raw", DataSet, "A data set. Add as many as needed, each under its own name."),
            (COMMON, Common, "The daemon."), (ALERTS, Alerts, "Who is alerted when a person has to act."),
            (LOGGING, Logging, "The daemon's log.")):
        lines += ["", f"# {about}", f"[{section}]"]
        hints = get_type_hints(kind, include_extras=True)
        for each in dataclasses.fields(kind):
            if each.name == "name":
                continue
            annotation, *extra = get_args(hints[each.name])
            help_ = next(one for one in extra if isinstance(one, Help))
            takes = _takes(annotation, extra)
            lines += ["", *(f"# {line}" for line in ini.wrapped(help_.text + (f" ({takes})" if takes else "")))]
            option = each.name.replace("_", "-")
            default = each.default
            if section == "raw" and option in _FIRST:
                lines.append(f"{option} = {help_.example}")
            elif help_.example and default in ("", None):
                lines += ["# Example:", f"#{option} = {help_.example}"]
            else:
                lines.append(f"#{option} = {_text(default, extra)}".rstrip())
    return "\n".join(lines) + "\n"


def _takes(annotation: Any, extra: list[Any]) -> str:
    """The accepted values, if the help does not show them."""
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    if _Duration in extra:
        return "a duration such as 30s, 5m, 12h or 7d"
    if _Size in extra:
        return "a number of bytes such as 500G or 2T"
    if annotation is int:
        checks = [check for each in extra if isinstance(each, FieldInfo) for check in each.metadata]
        least, most = (next((getattr(check, word) for check in checks if hasattr(check, word)), None)
                       for word in ("ge", "le"))
        return f"a number, {least} to {most}"
    return ""


def _text(value: Any, extra: list[Any]) -> str:
    if _Duration in extra:
        return written_duration(value)
    if _Size in extra:
        return written_size(value)
    return "" if value is None else str(value)


if __name__ == "__main__":
    print(sample(), end="")
