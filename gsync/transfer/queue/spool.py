"""Requests in files, which wait there while the database cannot be written.

<id>.json is a request to take in. <id>.<pid>-<start>.busy is one that a process is still working on; it is taken in
only if that process dies. A file is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress

from gsync.base.durable import make_dirs, replace_file
from gsync.base.process import is_alive, start_time
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, replicas_of, replicas_text


class Spool:
    """The spool's folder, which need not exist."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def write(self, request: NewRequest) -> None:
        """Spool a request to be taken in."""
        self._write(request, f"{request.id}.json")

    def keep(self, request: NewRequest) -> None:
        """Spool a request that is taken in only if this process dies before it calls `forget`."""
        self._write(request, _busy_name(request.id))

    def forget(self, request: str) -> None:
        """Remove a kept request: it is in the database, or nothing was done."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, _busy_name(request)))

    def waiting(self) -> Iterator[str]:
        """Yield the files to take in, sorted by name."""
        for name in sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []:
            if name.endswith(".json") or _is_orphaned(name):
                yield os.path.join(self.folder, name)

    def _write(self, request: NewRequest, name: str) -> None:
        make_dirs(self.folder)
        replace_file(os.path.join(self.folder, name), _to_json(request))


def read(path: str) -> NewRequest:
    """The request in a file. Raises ValueError, KeyError or TypeError if the file holds none."""
    with open(path, "rb") as file:
        return _from_json(file.read())


def _busy_name(request: str) -> str:
    """A name that identifies the process working on the request."""
    return f"{request}.{os.getpid()}-{start_time(os.getpid())}.busy"


def _is_orphaned(name: str) -> bool:
    """Whether it is a file of `keep` whose process is gone."""
    match = re.fullmatch(r"[0-9a-f]+\.([0-9]+)-([0-9]+)\.busy", name)
    return match is not None and not is_alive(int(match[1]), int(match[2]))


def _to_json(request: NewRequest) -> bytes:
    return json.dumps({
        "id": request.id, "kind": request.kind, "owner": request.owner, "label": request.label,
        "priority": request.priority, "operations": [
            {"kind": operation.kind, "arguments": dict(operation.arguments), "transfers": [
                [t.source, t.source_path.decode("latin-1"), t.store, t.path.decode("latin-1"), t.size, t.checksum,
                 t.catalog, replicas_text(t.replicas)] for t in operation.transfers]}
            for operation in request.operations]}).encode()


def _from_json(data: bytes) -> NewRequest:
    found = json.loads(data)
    operations = [NewOperation(operation["kind"], [
        NewTransfer(source, source_path.encode("latin-1"), store, path.encode("latin-1"), size, checksum, catalog,
                    replicas_of(replicas))
        for source, source_path, store, path, size, checksum, catalog, replicas in operation["transfers"]],
        operation["arguments"]) for operation in found["operations"]]
    return NewRequest(found["kind"], found["owner"], operations, found["label"], found["priority"], found["id"])
