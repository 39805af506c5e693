"""Completion, by real shells: what they offer for a line is asked of the function that `gsync` has them load."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.session.session import SessionHome
from gsync.state.home import Home
from lab.place import Place

pytestmark = pytest.mark.slow

# Calls the function that is registered for gsync, as bash does when Tab is pressed.
_BASH = """
source "$1"
shift
COMP_WORDS=(gsync "$@")
COMP_CWORD=$#
_gsync_completion gsync
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two sessions of one volume, and the gsync command in PATH."""
    place = Place(tmp_path)
    home = Home(str(place.home))
    home.add("photos", str(place.master))
    sessions = SessionHome(home)
    for name in ("alpha", "beta"):
        sessions.save(sessions.find_or_new("photos", f"h:/{name}", name))
    (place.home / "sessions" / "unfinished").mkdir()
    program = tmp_path / "bin" / "gsync"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec " + " ".join(place.argv()) + ' "$@"\n')
    program.chmod(0o755)
    place.env["PATH"] = f"{program.parent}:{place.env['PATH']}"
    return place


def script(place: Place, shell: str) -> Path:
    """What gsync gives the shell to load."""
    path = place.folder / f"completion.{shell}"
    if not path.exists():
        path.write_text(subprocess.run(
            ["gsync"], env={**place.env, "_GSYNC_COMPLETE": f"source_{shell}"}, capture_output=True, text=True,
            check=True, timeout=60).stdout)
    return path


def by_bash(place: Place, *words: str) -> list[str]:
    done = subprocess.run(["bash", "--norc", "-c", _BASH, "bash", script(place, "bash"), *words], env=place.env,
                          capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return [line for line in done.stdout.split("\n") if line]


def test_bash(place: Place) -> None:
    assert by_bash(place, "che") == ["checkpoint"]
    assert by_bash(place, "status", "") == ["alpha", "beta"]
    assert by_bash(place, "config", "beta", "set", "sync-m") == ["sync-method"]
    assert by_bash(place, "volume", "info", "--state", str(place.folder / "nowhere"), "") == []


class Terminal:
    """An interactive shell at a pseudo-terminal."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvpe(argv[0], argv, env)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Read until the pattern has come after what was waited for before."""
        end = time.monotonic() + 60
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < end, self.said
            if select.select([self._fd], [], [], 1)[0]:
                self.said += os.read(self._fd, 65536).decode(errors="replace")
        self.said = self.said[found.end():]

    def close(self) -> None:
        os.close(self._fd)
        os.waitpid(self._pid, 0)


@pytest.fixture
def terminal(place: Place, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    terminal = Terminal(["zsh", "-f", "-i"], {**place.env, "PS1": "ready> ", "ZDOTDIR": str(place.folder)})
    yield terminal
    terminal.close()


def test_zsh(place: Place, terminal: Terminal) -> None:
    terminal.wait_for("ready> ")
    terminal.type(f"autoload -U compinit; compinit -u; source {script(place, 'zsh')}; echo loa''ded\n")
    terminal.wait_for("loaded\r")
    terminal.wait_for("ready> ")
    for line, completed in [("gsync checkp", "oint"), ("gsync status al", "pha"), ("gsync volume info ph", "otos")]:
        terminal.type(line + "\t")
        terminal.wait_for(line + completed)
        terminal.type("\x15")  # the line is given up


def test_the_installed_script_is_loaded_by_the_shell(place: Place) -> None:
    """What --install-completion does for bash: a file, and a line in .bashrc that loads it."""
    home = place.folder / "user"
    home.mkdir()
    env = {**place.env, "HOME": str(home)}
    subprocess.run(["bash", "--norc", "-c", "gsync --install-completion; true"], env=env, check=True,
                   capture_output=True, timeout=60)
    done = subprocess.run(["bash", "--rcfile", home / ".bashrc", "-i", "-c", "complete -p gsync"], env=env,
                          capture_output=True, text=True, check=True, timeout=60)
    assert "_gsync_completion gsync" in done.stdout
