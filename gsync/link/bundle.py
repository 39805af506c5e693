"""The agent as one file that any Python from 3.9 on can run: a zipapp of the gsync modules that it needs.

Its first run unpacks it beside itself, where Python keeps the compiled modules: from then on the agent and its
receivers start in a third of the time. If it cannot be unpacked, or a power cut tore the copy, the zipapp runs as it
is.
"""

from __future__ import annotations

import io
import zipfile
from hashlib import blake2b
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# These modules make up the agent: all of slave/, all of base/ except what only the master's host needs, and these.
_ALONG = {"", "link", "link.protocol", "link.stream", "link.survey",
          "transfer.stores.store", "transfer.stores.dir", "transfer.stores.server"}  # for `agent --store ROOT NAME`
_NOT_ALONG = {"base.ini", "base.log", "base.logfile", "base.notify", "base.process", "base.times"}
_EMPTY = ("transfer/__init__", "transfer/stores/__init__")
_MAIN = '''\
import os
import sys


def is_whole(folder):
    try:
        return all(os.path.getsize(os.path.join(folder, name)) == size for name, size in SIZES)
    except OSError:
        return False


def unpack(file, folder):
    import shutil
    import zipfile

    new = "%s.%d" % (folder, os.getpid())
    os.umask(0o077)
    try:
        zipfile.ZipFile(file).extractall(new)
        os.rename(new, folder)
    except OSError:  # full, read-only, or another one was first
        shutil.rmtree(new, ignore_errors=True)


file = sys.path[0]
folder = "%s-%s" % (os.path.splitext(file)[0], DIGEST)  # a newer agent may come to the same place
if not os.path.isdir(folder):
    unpack(file, folder)
if is_whole(folder):
    sys.path[0] = folder
if sys.argv[1:2] == ["--store"]:
    from gsync.transfer.stores.server import main
    sys.exit(main(sys.argv[2:]))
from gsync.slave.program import main
sys.exit(main())
'''


def name() -> str:
    """The file name under which the zipapp is stored: different modules give a different name."""
    return f"agent-{_digest(_contents())}.pyz"


def zipapp() -> bytes:
    """The bytes of the zipapp; the same modules give the same bytes."""
    contents = _contents()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in contents:
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
        sizes = [(path, len(data)) for path, data in contents]
        archive.writestr(zipfile.ZipInfo("__main__.py"), f"SIZES = {sizes!r}\nDIGEST = {_digest(contents)!r}\n{_MAIN}")
    return out.getvalue()


def goes_along(module: str) -> bool:
    """Whether a module is part of the agent. module: its name without "gsync.", "" for gsync itself."""
    room = module.partition(".")[0]
    return module in _ALONG or room == "slave" or (room == "base" and module not in _NOT_ALONG)


def module_of(path: Path) -> str:
    """The name of the module in a file below the package, without "gsync."."""
    parts = path.relative_to(_PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _contents() -> list[tuple[str, bytes]]:
    """Every module of the agent: its path in the zipapp, and its source."""
    files = [path for path in sorted(_PACKAGE.rglob("*.py")) if goes_along(module_of(path))]
    contents = [(path, path.read_bytes()) for path in files] + [(_PACKAGE / f"{name}.py", b"") for name in _EMPTY]
    return [(str(path.relative_to(_PACKAGE.parent)), data) for path, data in contents]


def _digest(contents: list[tuple[str, bytes]]) -> str:
    digest = blake2b(_MAIN.encode(), digest_size=10)
    for path, data in contents:
        digest.update(b"%s\0%d\0" % (path.encode(), len(data)))
        digest.update(data)
    return digest.hexdigest()
