"""Runs the commands of the documents' pages as a reader would, on two hosts of their own.

A block of `sh` is run as it stands. Notes in HTML comments, which the site omits, tell a test more:

    <!-- test: COMMANDS -->        run here too: for what the page takes for granted, or what must be true now
    <!-- test until: COMMAND -->   the next block runs for ever: it gets SIGTERM once this succeeds, and exits with 0
    <!-- test exits: N -->         the last command of the next block exits with N
    <!-- test file: PATH -->       the next block is this file
    <!-- not run: REASON -->       why the next block, of `console`, is not run
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from lab import REPOSITORY
from lab.hosts import Hosts, sshd_on

DOCS = REPOSITORY / "docs"
PATIENCE = 300
_NOTE = re.compile(r"\s*<!--\s*(test|test until|test exits|test file|not run):\s*(.*?)\s*-->\s*", re.DOTALL)
_AT_ITS_END = re.compile(r"\s+#\s.*$")


@dataclass(frozen=True)
class Block:
    """A fenced block, or a note. kind: the block's language, or the note's word; notes: those right before a block."""

    line: int
    kind: str
    text: str
    notes: dict[str, str]


def pages() -> list[Path]:
    """The pages that people write: neither the generated reference nor the developers' pages."""
    written = (page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in ("reference", "internals"))
    return [REPOSITORY / "README.md", *sorted(written)]


def blocks(page: Path) -> Iterator[Block]:
    notes: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text()):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            for word, text in _NOTE.findall(token.content):
                if word == "test":
                    yield Block(line, word, text, {})
                else:
                    notes[word] = text
        elif token.type == "fence":
            yield Block(line, token.info.strip(), token.content, notes)
            notes = {}


def script(page: Path) -> str:
    """The page's commands, as a script for bash."""
    name = page.relative_to(REPOSITORY)
    lines = ["set -euo pipefail", f"cd {shlex.quote(str(REPOSITORY))}"]
    for block in blocks(page):
        if "test file" in block.notes:
            lines.append(f"cat >{shlex.quote(block.notes['test file'])} <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.kind in ("sh", "test"):
            lines += [f"echo '--- {name}:{block.line}' >&2", *_run(block)]
    return "\n".join(lines) + "\n"


def _run(block: Block) -> list[str]:
    if "test until" in block.notes:
        command = "\n".join(_AT_ITS_END.sub("", line) for line in block.text.rstrip().split("\n"))
        return [f"{command} &", "followed=$!", f"until {block.notes['test until']}; do sleep 0.1; done",
                "kill -TERM $followed", "wait $followed"]
    if "test exits" in block.notes:
        return ["code=0", f"(set -e\n{block.text}) || code=$?", f"test $code = {block.notes['test exits']}"]
    return [block.text]


def run(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Follow the page on host `here`. Its other host is `backup1`, which root's ssh enters without a question. Both
    have /srv and /mnt of their own, and all processes there exit with them."""
    private = {name: {place: _made(folder / name / place[1:]) for place in ("/srv", "/mnt", *more)}
               for name, more in (("here", ()), ("backup1", ("/root",)))}
    (folder / "backup1/root/.bashrc").touch()  # sshd_on mounts /dev/null over it
    programs = _made(folder / "bin")
    program = programs / "gsync"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -P -m gsync "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(_made(folder / "home")),
           "GSYNC_HOME": str(folder / "state"), "COLUMNS": "150", "TERM": "dumb"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with ExitStack() as opened:
        hosts = opened.enter_context(Hosts("here", "backup1", private=private))
        config = opened.enter_context(sshd_on(hosts["backup1"], folder / "sshd"))
        here = hosts["here"]
        here.run("mount", "--bind", config, "/etc/ssh/ssh_config")
        return subprocess.run(here.argv("bash", "-c", script(page)), env=env, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
