"""Requests, their operations and the transfers of these as values: as submitted, and as stored.

A request has ordered operations, an operation has transfers. Not here: how they change (transfers).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from gsync.base.model import shown


class TransferState(Enum):
    """The state of a transfer; operations and requests are shown in the same words."""

    QUEUED = "QUEUED"          # an earlier operation is not done
    NEW = "NEW"                # ready to be taken
    ACQUIRED = "ACQUIRED"      # a worker holds it until its lease expires
    SUBMITTED = "SUBMITTED"    # bytes may be moving
    VERIFYING = "VERIFYING"    # the bytes have arrived and are being checked
    DONE = "DONE"
    RETRY = "RETRY"            # becomes NEW again at its time
    FAILED = "FAILED"
    KILL = "KILL"              # its worker must let go of it
    KILLED = "KILLED"


TAKEN = (TransferState.ACQUIRED, TransferState.SUBMITTED, TransferState.VERIFYING)
ENDED = (TransferState.DONE, TransferState.FAILED, TransferState.KILLED)
HELD = (*TAKEN, TransferState.KILL)  # a worker holds it
AGAIN = (TransferState.FAILED, TransferState.KILLED, TransferState.RETRY)


def new_id() -> str:
    """An id for a request: 16 hex digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """One file to move, from a path in a store (a name, or a URL) to another. size and checksum (SHA-256, hex): if
    known. catalog: publish it there once it is done. replicas: other places (store, path) of the same content, used if
    the source is corrupt."""

    source: str
    source_path: bytes
    store: str
    path: bytes
    size: int | None = None
    checksum: str | None = None
    catalog: str | None = None
    replicas: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class NewOperation:
    """kind names the handler; arguments are passed to it."""

    kind: str
    transfers: Sequence[NewTransfer]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewRequest:
    """kind: the command that made it: archive, deliver, send, queue. priority: -3 to 3; each step doubles the share."""

    kind: str
    owner: str
    operations: Sequence[NewOperation]
    label: str = ""
    priority: int = 0
    id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class Request:
    id: str
    kind: str
    owner: str
    priority: int
    label: str
    created: int
    changed: int
    state: TransferState


@dataclass(frozen=True, slots=True)
class Operation:
    id: int
    request: str
    position: int
    kind: str
    arguments: dict[str, Any]
    state: TransferState


@dataclass(frozen=True, slots=True)
class Transfer:
    """A row of the table. kind is the operation's; times in ns since the epoch."""

    id: int
    request: str
    operation: int
    kind: str
    owner: str
    priority: int
    source: str
    source_path: bytes
    store: str
    path: bytes
    size: int | None
    checksum: str | None
    state: TransferState
    tries: int
    not_before: int
    worker: str | None
    lease: int
    category: str | None
    reason: str
    created: int
    changed: int
    publication: str
    catalog: str | None
    replicas: tuple[tuple[str, bytes], ...]

    @property
    def link(self) -> tuple[str, str]:
        """Source and destination store: transfers of one link run together."""
        return self.source, self.store


COLUMNS = ", ".join(f.name for f in fields(Transfer))


def transfer_of(row: Sequence[Any]) -> Transfer:
    values: list[Any] = list(row)
    values[12] = TransferState(values[12])
    values[-1] = replicas_of(values[-1])
    return Transfer(*values)


def request_of(row: Sequence[Any]) -> Request:
    values: list[Any] = list(row)
    values[7] = TransferState(values[7])
    return Request(*values)


def operation_of(row: Sequence[Any]) -> Operation:
    values: list[Any] = list(row)
    values[4], values[5] = json.loads(values[4]), TransferState(values[5])
    return Operation(*values)


def replicas_text(replicas: Sequence[tuple[str, bytes]]) -> str:
    """The replicas, as the table stores them."""
    return json.dumps([[store, path.decode("latin-1")] for store, path in replicas]) if replicas else ""


def replicas_of(text: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((store, path.encode("latin-1")) for store, path in json.loads(text)) if text else ()


def shown_place(store: str, path: bytes) -> str:
    """A place, for people."""
    return f"{store}:{shown(path)}" if store != "/" else "/" + shown(path)
