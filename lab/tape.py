"""A stand-in for a tape system's commands that really stores. Like hsi and htar it is called by name, and keeps its
data apart from its caller.
"""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = '''\
import os, shutil, sys
folder, what, name, *rest = sys.argv[1:]
path = os.path.join(folder, name)
with open(os.path.join(folder, "log"), "a") as log:
    log.write(" ".join(sys.argv[2:]) + chr(10))
if os.path.exists(os.path.join(folder, "down")):
    sys.exit("HPSS is not available")
if what == "put":
    shutil.copyfile(rest[0], path + ".new")
    os.rename(path + ".new", path)
elif what == "get":
    shutil.copyfile(path, rest[0])
elif what == "size":
    print(f"{name}: {os.stat(path).st_size} bytes") if os.path.exists(path) else sys.exit("no such file")
elif what == "delete":
    os.unlink(path)
elif what == "read":
    with open(path, "rb") as file:
        file.seek(int(rest[0]))
        sys.stdout.buffer.write(file.read(int(rest[1])))
'''


class Tape:
    """Its holdings are in `folder`; `options` are a vault's. While there is a file `down` in it, every command
    fails."""

    def __init__(self, folder: Path, ranges: bool = False) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder.with_name("tape-command")
        program.write_text(_PROGRAM)
        call = f"{sys.executable} -IS '{program}' '{folder}'"
        self.options = {"put-command": f"{call} put {{name}} {{file}}", "get-command": f"{call} get {{name}} {{file}}",
                        "size-command": f"{call} size {{name}}", "delete-command": f"{call} delete {{name}}"}
        if ranges:
            self.options["read-command"] = f"{call} read {{name}} {{offset}} {{size}}"

    def log(self) -> list[str]:
        """The commands so far: command, name, further words."""
        return (self.folder / "log").read_text().splitlines()
