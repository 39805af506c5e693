"""`gsync agent` and `gsync worker`, started by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def gsync(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "gsync", *args], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60, check=False, env={**os.environ, **env})


def test_the_agent_ends_with_its_input_and_leaves_the_tree_as_it_was(tmp_path: Path) -> None:
    done = gsync("agent", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == []


def test_a_forced_agent_refuses_what_is_not_gsyncs(tmp_path: Path) -> None:
    done = gsync("agent", "--forced", str(tmp_path), SSH_ORIGINAL_COMMAND="rm -rf /")
    assert done.returncode == 77
    assert done.stderr == "gsync: refused: not allowed with this key\n"


def test_a_worker_of_no_session_is_one_line(tmp_path: Path) -> None:
    done = gsync("worker", "nobody", "--state", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "gsync: no such session: nobody; `gsync status` lists them\n"
