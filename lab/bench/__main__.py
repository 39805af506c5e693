"""`scripts/bench`: gsync beside rsync -a and lsyncd on the same workloads, in turn, over several rounds.
`scripts/bench gluster`: the same beside GlusterFS's own geo-replication; needs root and glusterfs-server.

Prints a table of ratios (gsync's time over the peer's: below 1 gsync is faster) and of gsync's peak memory.
A workload that fails is reported and makes the exit code 1; the others continue.
As root, every tree gets a fresh ext4 of its own. The last column tells whether the project's aims were met; they
hold for the full size (--scale 1) on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.bench.gluster import gluster
from lab.bench.measure import HEADINGS, MIB, Failed, MemoryWatch, Result, table
from lab.bench.workloads import WORKLOADS, Bench
from lab.sshd import Sshd

MAX_MEMORY = 200 * MIB


def _version(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().split("\n")[0]


def _about(args: argparse.Namespace) -> dict[str, object]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rounds": args.rounds, "scale": args.scale,
        "kernel": platform.release(), "cores": os.cpu_count(), "python": platform.python_version(),
        "rsync": _version("rsync", "--version"), "lsyncd": _version("lsyncd", "--version"),
        "ssh": _version("ssh", "-V"),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _memory_rows(peaks: dict[str, dict[str, int]]) -> list[list[str]]:
    roles = sorted({role for by_role in peaks.values() for role in by_role})
    rows = []
    for role in roles:
        highest, workload = max((by_role.get(role, 0), workload) for workload, by_role in peaks.items())
        rows.append([role, f"{highest / MIB:.0f} MiB", workload, "met" if highest <= MAX_MEMORY else "missed"])
    return rows


class _Ended(Exception):
    pass


def _end(*_: object) -> None:
    """Leave nothing behind, and report the measurements so far."""
    raise _Ended("ended by SIGTERM")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="?", choices=["gluster"], help="what is only measured when it is asked for")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="shrink the workloads, e.g. 0.01")
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), metavar="NAME",
                        help=f"one of {', '.join(WORKLOADS)}; can be repeated")
    parser.add_argument("--workdir", metavar="DIR", help="where the trees are made; needs about 20 GiB at full size")
    parser.add_argument("--json", metavar="FILE", help="write everything measured as JSON")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, _end)
    results: list[Result] = []
    peaks: dict[str, dict[str, int]] = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="gsync-bench-", dir=args.workdir) as name, \
            Sshd(Path(name, "sshd")) as server:
        chosen = {"gluster": gluster} if args.group else {each: WORKLOADS[each] for each in args.only or WORKLOADS}
        for workload, measure in chosen.items():
            _say(f"{workload}: {(measure.__doc__ or '').strip()}")
            memory = MemoryWatch()
            memory.parents.add(server.pid)
            memory.start()
            try:
                workdir = Path(name, workload)
                workdir.mkdir()
                bench = Bench(workdir, server, memory, args.rounds, args.scale, say=_say)
                results += measure(bench)
            except (Failed, _Ended) as exc:
                _say(f"scripts/bench: {workload}: {exc}")
                failed = True
            finally:
                memory.stop()
            peaks[workload] = memory.peaks
    print(table(HEADINGS, [result.cells() for result in results]))
    print()
    if not args.group:
        print(table(["gsync process", "peak memory", "at", f"≤ {MAX_MEMORY // MIB} MiB"], _memory_rows(peaks)))
    if args.json:
        document = {"about": _about(args), "results": [result.as_json() for result in results], "peak_memory": peaks}
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
