"""What a confined process can still change: what it was given, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab import REPOSITORY

PROGRAM = """
import json, os, sys
from gsync.slave.directory.landlock import confine
inside, outside = sys.argv[1:]
folder = os.open(inside, os.O_RDONLY)
able = confine([folder], ["/dev/null"])
attempts = {
    "write": lambda d: open(d + "/file", "r+").write("x"), "truncate": lambda d: os.truncate(d + "/file", 1),
    "make": lambda d: open(d + "/new", "w"), "mkdir": lambda d: os.mkdir(d + "/dir"),
    "symlink": lambda d: os.symlink("x", d + "/symlink"), "link": lambda d: os.link(d + "/file", d + "/link"),
    "rename": lambda d: os.rename(d + "/file", d + "/renamed"), "remove": lambda d: os.unlink(d + "/renamed"),
    "through a link in the folder": lambda d: open(inside + "/way" if d == outside else inside + "/own", "r+"),
    "read": lambda d: os.listdir(d), "null": lambda d: open("/dev/null", "w"),
    "run": lambda d: os.execvp("true", ["true"]) if os.fork() == 0 else os.wait(),
}
done = {}
for where, folder in (("inside", inside), ("outside", outside)):
    done[where] = []
    for name, attempt in attempts.items():
        try:
            attempt(folder)
            done[where].append(name)
        except OSError:
            pass
print(json.dumps([able, list(attempts), done]))
"""


def test_only_what_lies_in_the_folder_can_be_changed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        for name in ("file", "other"):
            (folder / name).write_text("text")
    (inside / "way").symlink_to(outside / "other")
    (inside / "own").hardlink_to(outside / "other")  # as the agent exposes a file
    done = subprocess.run([sys.executable, "-c", PROGRAM, inside, outside], capture_output=True, text=True, check=True,
                          cwd=REPOSITORY)
    able, attempts, worked = json.loads(done.stdout.splitlines()[-1])
    if not able:
        pytest.skip("this kernel has no Landlock")
    assert worked["inside"] == attempts
    assert worked["outside"] == ["read", "null", "run"]
