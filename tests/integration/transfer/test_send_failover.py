"""send with the wanted store down, by real processes: a watcher looks all the time whether a copy is there, while the
queue's workers are killed again and again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gsync.transfer import Client
from gsync.transfer.queue.requests import TransferState

pytestmark = pytest.mark.slow

FILES = 8
_WORKER = """
import sys
from gsync.transfer.kinds import HANDLERS
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.worker import QueueSettings, QueueWorker
policy = RetryPolicy(max_retries=50, first_pause=0.05, longest_pause=0.2, ban=0.2)
QueueWorker(sys.argv[1], QueueSettings(lease=1.0, policy=policy), handlers=HANDLERS).run()
"""
# The temporary place is looked at first: whatever moves on goes from there to the wanted one.
_WATCHER = """
import hashlib, json, os, sys
places = json.load(open(sys.argv[1]))
looks, bad = 0, []
def whole(path, sha256):
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == sha256
    except OSError:
        return False
while not os.path.exists(sys.argv[2]):
    for temporary, wanted, sha256 in places:
        looks += 1
        if not whole(temporary, sha256) and not whole(wanted, sha256):
            bad.append(wanted)
print(json.dumps([looks, bad]))
"""


def test_never_without_a_copy(tmp_path: Path) -> None:
    env = {**os.environ, "GSYNC_HOME": str(tmp_path / "home")}
    for name in ("out", "east", "spare"):
        (tmp_path / name).mkdir()
    names = [f"f{n}" for n in range(FILES - 1)] + ["name with\nnewline"]
    for name in names:
        (tmp_path / "out" / name).write_bytes(os.urandom(random.randrange(300_000)))
    with Client(env["GSYNC_HOME"]) as client:
        for name in ("east", "spare"):
            client.stores.add(name, str(tmp_path / name))
    (tmp_path / "east").rename(tmp_path / "away")

    # it lands at the failover store
    done = subprocess.run([sys.executable, "-m", "gsync", "send", *(str(tmp_path / "out" / name) for name in names),
                           "--to", "east", "--failover", "spare", "--register", "default", "--json"],
                          env=env, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    sent = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["at"]["store"] for each in sent} == {"spare"}

    # and goes on when the wanted one is back, whoever is killed meanwhile
    places = [[str(tmp_path / "spare" / each["at"]["path"]), str(tmp_path / "east" / os.path.basename(each["file"])),
               each["sha256"]] for each in sent]
    (tmp_path / "places").write_text(json.dumps(places))
    watcher = subprocess.Popen([sys.executable, "-c", _WATCHER, str(tmp_path / "places"), str(tmp_path / "end")],
                               stdout=subprocess.PIPE, text=True)
    for name in names:
        (tmp_path / "out" / name).unlink()
    (tmp_path / "away").rename(tmp_path / "east")
    killed = 0
    with Client(env["GSYNC_HOME"]) as client:
        states: set[TransferState] = set()
        end = time.monotonic() + 120
        while states != {TransferState.DONE}:
            assert time.monotonic() < end, states
            worker = subprocess.Popen([sys.executable, "-c", _WORKER, env["GSYNC_HOME"]], stderr=subprocess.DEVNULL)
            until = time.monotonic() + random.uniform(0.5, 4.0)  # when it is killed
            while states != {TransferState.DONE} and time.monotonic() < until:
                time.sleep(0.05)
                states = {client.status(each["request"]).request.state for each in sent}
            killed += states != {TransferState.DONE}
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    (tmp_path / "end").write_text("")
    looks, bad = json.loads(watcher.communicate(timeout=60)[0])
    assert bad == []
    assert looks > FILES
    print(f"{killed} workers killed on the way, {looks} looks")
    for _, wanted, sha256 in places:
        assert hashlib.sha256(Path(wanted).read_bytes()).hexdigest() == sha256
    assert os.listdir(tmp_path / "spare") == []
