"""`scripts/soak`: gsync follows a tree that several processes change at random, and is killed now and then.

While `gsync run` follows, processes make random changes of every kind, and gsync's own processes (worker, recorder,
agent, receivers, `gsync run` itself) get SIGKILL at random. Then everything is quiet, and the slave must become equal
within --settle seconds: in contents, names, hard links, attributes, xattrs, ACLs, sparseness, and in rsync's opinion;
with nothing left in limbo and no failures. Exits with 0 if so. Otherwise it prints the differences, keeps the folder
with trees, logs and changelogs, and exits with 1.

The seed determines the changes and kills, not when the processes get to run: the same seed is not the same history.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gsync.engine.ledger import Ledger
from lab.images import FsImage
from lab.place import Place
from lab.sshd import HOST, Sshd
from lab.trees import Churn, compare, make_everything, rsync_diff, wait_until_equal

VICTIMS = ["worker", "worker", "recorder", "recorder", "agent", "receiver", "run"]
_SIZE = 8 << 30


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _churn(root: Path, outside: Path, seed: int, privileged: bool, seconds: float, rate: float,
           done: multiprocessing.Queue[tuple[Counter[str], Counter[str]]]) -> None:
    with Churn(root, seed, privileged, outside) as churn:
        churn.run(seconds, rate)
    done.put((churn.done, churn.skipped))


class Soak:
    """One run of the soak in a folder."""

    def __init__(self, args: argparse.Namespace, place: Place, outside: Path) -> None:
        self.args, self.place, self.outside = args, place, outside
        self.rng = random.Random(args.seed)
        self.kills: Counter[str] = Counter()
        self._run: subprocess.Popen[bytes] | None = None

    def run(self) -> list[str]:
        """Run it; return the final differences."""
        args, place = self.args, self.place
        privileged = os.geteuid() == 0 and args.detector != "inotify"  # inotify does not see through links outside
        make_everything(place.master / "everything", args.seed, privileged)
        done: multiprocessing.Queue[tuple[Counter[str], Counter[str]]] = multiprocessing.Queue()
        churns = [
            multiprocessing.Process(target=_churn, args=(place.master, self.outside, args.seed * 1000 + n, privileged,
                                                         args.seconds, args.rate / args.processes, done))
            for n in range(args.processes)]
        for churn in churns:
            churn.start()
        begun = time.monotonic()
        kills = sorted(self.rng.uniform(0, args.seconds) for _ in range(args.kills))
        try:
            while any(churn.is_alive() for churn in churns):
                self._keep_running()
                if kills and time.monotonic() - begun > kills[0] and self._kill():
                    kills.pop(0)
                time.sleep(0.05)
            operations: Counter[str] = Counter()
            for _ in churns:
                operations += done.get(timeout=60)[0]
            if any(churn.exitcode for churn in churns):
                return ["a process that makes changes failed"]
            for _ in kills:
                self._kill()
            _say(f"{operations.total()} changes of {len(operations)} kinds; killed: "
                 + ", ".join(f"{role} {n}" for role, n in sorted(self.kills.items())))
            return self._settle()
        finally:
            for churn in churns:
                churn.terminate()
            if self._run is not None:
                self._run.terminate()
                self._run.wait(60)

    def _keep_running(self) -> None:
        if self._run is None or self._run.poll() is not None:
            if self._run is not None and self._run.returncode != -9:
                _say(f"gsync run ended by itself with {self._run.returncode}")
            self._run = self.place.start()

    def _kill(self) -> bool:
        """Kill one of gsync's processes; return whether there was one."""
        role = self.rng.choice(VICTIMS)
        if not self.place.kill(role):
            return False
        self.kills[role] += 1
        if role == "run":
            assert self._run is not None
            self._run.wait()
        return True

    def _settle(self) -> list[str]:
        args, place = self.args, self.place
        begun = time.monotonic()
        lines: list[str] = []
        while time.monotonic() - begun < args.settle:
            self._keep_running()
            lines = wait_until_equal(place.master, place.slave, 5, 1)
            if not lines:
                lines = rsync_diff(place.master, place.slave, exclude=("/.gsync",)) + self._left()
            if not lines:
                # Changes on their way must not touch it again.
                time.sleep(5)
                lines = compare(place.master, place.slave) + self._left()
                if not lines:
                    _say(f"equal {time.monotonic() - begun:.0f} s after the last change")
                    return []
            time.sleep(1)
        return lines

    def _left(self) -> list[str]:
        """Entries that should be gone on a quiet tree."""
        limbo = self.place.slave / ".gsync" / "limbo"
        lines = [f"left in limbo: {path}" for folder in ("new", "old", "link") for path in (limbo / folder).iterdir()]
        for path in self.place.home.glob("sessions/*/ledger.db"):
            ledger = Ledger(str(path))
            lines += [f"failure: {failure}" for failure in ledger.all()]
            ledger.close()
        status = self.place.worker_status()
        if status.get("state") != "Active" or not status.get("in_step"):
            lines.append(f"not in step: {status}")
        return lines

    def why(self) -> list[str]:
        """The processes' own messages: the only trace of them where the folder does not outlive the run."""
        lines = [f"{path}: {path.read_text()}" for path in [*self.place.home.glob("volumes/*/bricks/*/recorder.status"),
                                                            *self.place.home.glob("sessions/*/worker.status")]]
        log = self.place.log().splitlines()
        return [*lines, *[line for line in log if " ERROR " in line or " WARNING " in line][-40:],
                "the last lines of the log:", *log[-60:]]


@contextlib.contextmanager
def _trees(folder: Path, args: argparse.Namespace) -> Iterator[tuple[Place, Path]]:
    """The place, and a folder outside its master on the same file system."""
    with contextlib.ExitStack() as servers:
        options: list[object] = ["--detector", args.detector, "--sync-method", args.sync_method, "--log-level", "DEBUG"]
        slave_arg = None
        if args.ssh:
            server = servers.enter_context(Sshd(folder / "sshd"))
            slave_arg = f"{HOST}:{folder}/slave"
            options += ["--ssh-config", server.client_config]
        outside = folder / "outside"
        outside.mkdir()
        yield Place(folder, slave_arg=slave_arg, args=tuple(options)), outside


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="how long changes are made (60)")
    parser.add_argument("--seed", type=int, metavar="N", help="default: a new one each time")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="SIGKILLs spread over that time (0)")
    parser.add_argument("--processes", type=int, default=3, metavar="N", help="that make changes (3)")
    parser.add_argument("--rate", type=float, default=100, metavar="N", help="changes per second of all together (100)")
    parser.add_argument("--settle", type=float, default=240, metavar="S", help="time to become equal in (240)")
    parser.add_argument("--ssh", action="store_true", help="a slave over ssh to a server of our own on 127.0.0.1")
    parser.add_argument("--detector", choices=["auto", "fanotify", "inotify"], default="auto")
    parser.add_argument("--sync-method", choices=["auto", "rsync", "tarssh"], default="auto")
    parser.add_argument("--workdir", metavar="DIR", help="where the trees are made; needs a few GiB")
    parser.add_argument("--keep", action="store_true", help="keep the folder whatever the result")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = random.randrange(1_000_000)
    base = folder = Path(tempfile.mkdtemp(prefix="gsync-soak-", dir=args.workdir))
    image = None
    if os.geteuid() == 0:  # a file system of its own: fanotify then reports no other changes
        image = FsImage(base / "image", _SIZE)
        folder = image.path
    _say(f"seed {args.seed}, folder {folder}")
    differences: list[str] = ["broken off"]
    try:
        with _trees(folder, args) as (place, outside):
            soak = Soak(args, place, outside)
            differences = soak.run()
            for line in [*differences[:100], *(soak.why() if differences else [])]:
                _say(line)
    finally:
        if differences or args.keep:
            _say(f"kept: {folder}" + (" (a mounted image)" if image else ""))
        else:
            if image is not None:
                image.close()
            shutil.rmtree(base)
    _say(f"seed {args.seed}: {'NOT equal' if differences else 'equal'}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
