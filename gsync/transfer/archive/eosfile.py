"""What users' scripts read of an EOS archive: its archive file, and the names `.archive.<operation>.<outcome>`.

Format of the file (CERN EOS, ArchiveFile): a JSON object as header, then a JSON list per directory, then one per file,
in the columns that the header names; all values are strings. The format has no form for symlinks and special files, so
they are left out. Names that are not UTF-8 are escaped with surrogates, as Python does. Not here: gsync's own manifest,
which is the truth.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterator

from gsync.base.model import NS
from gsync.transfer.archive.manifest import Manifest, ManifestHeader

OPERATIONS = ("put", "get", "purge", "delete")
INIT = b".archive.init"
LOG = b".archive.log"
SCRATCH = b".archive.tmp"  # gsync's own: files being restored
NEW = b".archive.new"  # a state file before it gets its name
MARKERS = (INIT, *(b".archive.%s.%s" % (operation.encode(), outcome) for operation in OPERATIONS
                   for outcome in (b"done", b"err")))
MANIFEST, MORE = b".archive.manifest", b".archive.more"  # gsync's own: beside the members in the vault
RESERVED = frozenset((*MARKERS, LOG, SCRATCH, NEW))  # names at the root of an archive that do not belong to it

BACKUP_PREFIX = b".sys.b#.backup."
BACKUP_FILE, BACKUP_DONE, BACKUP_ERR = BACKUP_PREFIX + b"file", BACKUP_PREFIX + b"done", BACKUP_PREFIX + b"err."

_DIR_META = ["uid", "gid", "mode", "attr"]
_FILE_META = ["size", "mtime", "ctime", "uid", "gid", "mode", "xstype", "xs"]


def marker(operation: str, done: bool) -> bytes:
    """The name that shows the archive's state in its tree; a finished "create" is `.archive.init`."""
    return INIT if operation == "create" else b".archive.%s.%s" % (operation.encode(), b"done" if done else b"err")


def lines(manifest: Manifest, vault_url: str, window_seconds: int | None = None) -> Iterator[bytes]:
    """The archive file of a manifest. With a window (0: none was requested), the file of a backup: its source and
    destination are swapped, because EOS treats a backup as a get."""
    header = manifest.header
    disk, vault = _url(header.root), f"{vault_url.rstrip('/')}/{_text(header.place)}/"
    doc: dict[str, object] = {"src": disk, "dst": vault} if window_seconds is None else {"src": vault, "dst": disk}
    doc.update(svc_class="", dir_meta=_DIR_META, file_meta=_FILE_META)
    if window_seconds is not None:
        doc["excl_xattr"] = list(header.excluded_xattrs)
    doc.update(uid=str(header.uid), gid=str(header.gid))
    if window_seconds is not None:
        doc.update(twindow_type=header.window, twindow_val=str(window_seconds) if header.window else "")
    doc.update(timestamp=header.created // NS, num_dirs=header.directories, num_files=_files(manifest, header))
    yield _line(doc)
    for _, entry in manifest.entries():
        if entry.is_dir:
            yield _line(["d", f"{_text(entry.path)}/" if entry.path else "./", str(entry.uid), str(entry.gid),
                         f"{entry.mode:o}", {_text(name): _value(value) for name, value in entry.xattrs}])
        elif entry.kind == stat.S_IFREG:
            yield _line(["f", _text(entry.path), str(entry.size), _time(entry.mtime), _time(entry.ctime),
                         str(entry.uid), str(entry.gid), f"{entry.mode:o}", "sha256", entry.sha256])


def _files(manifest: Manifest, header: ManifestHeader) -> int:
    """The number of file lines; lower than header.files if there are links or special files."""
    if not header.files:
        return 0
    return sum(1 for _, entry in manifest.entries(manifest.behind_directories()) if entry.kind == stat.S_IFREG)


def _line(value: object) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _text(raw: bytes) -> str:
    return os.fsdecode(raw)


def _value(raw: bytes) -> str:
    """An xattr's value as text; if it is not UTF-8, in base64 as getfattr writes it."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "0s" + base64.b64encode(raw).decode("ascii")


def _time(ns: int) -> str:
    """Seconds and nanoseconds since the epoch, as EOS writes them; times before it round seconds down."""
    return f"{ns // NS}.{ns % NS:09d}"


def _url(root: bytes) -> str:
    return f"file://{_text(root).rstrip('/')}/"

