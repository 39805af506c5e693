"""`python -m gsync.recorder NAME`: a recorder in a process of its own, with few imports so that it stays small."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from types import FrameType

from gsync.base import log
from gsync.base.durable import make_dirs
from gsync.base.errors import GsyncError, UsageError
from gsync.base.notify import Notifier
from gsync.recorder.bounds import BOUNDS, Keep
from gsync.recorder.recorder import run_recorder
from gsync.recorder.status import RecorderPort
from gsync.state.home import Home


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gsync recorder")
    parser.add_argument("name", help="the volume to record")
    parser.add_argument("--home", help="where gsync keeps its state")
    parser.add_argument("--detector", default="auto", help="auto, fanotify or inotify")
    parser.add_argument("--rollover", type=float, default=1.0,
                        help="longest time in seconds until a changelog is written")
    parser.add_argument("--keep-seconds", type=int, default=BOUNDS.keep.seconds, help="how long changelogs are kept")
    parser.add_argument("--keep-bytes", type=int, default=BOUNDS.keep.size, help="how many bytes of them")
    parser.add_argument("--archive-bytes", type=int, default=BOUNDS.keep.archive,
                        help="how many of older ones; 0: none")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--managed", action="store_true", help="log to the volume's log: a monitor has started it")
    args = parser.parse_args(argv)
    log.setup(args.log_level)
    notifier = Notifier()
    stop = threading.Event()
    try:
        home = Home(args.home)
        volume = home.get(args.name)
        if volume.gluster is not None:
            raise UsageError(f"volume {args.name}: GlusterFS records its changes itself")
        brick = volume.brick()
        port = RecorderPort(brick)
        if args.managed:
            make_dirs(brick.folder)
            log.setup(args.log_level, brick.log, owner=True)

        def on_signal(number: int, frame: FrameType | None) -> None:
            stop.set()
            port.poke()  # wakes the recorder

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        run_recorder(args.name, home, detector=args.detector, rollover=args.rollover, stop=stop,
                     keep=Keep(args.keep_seconds, args.keep_bytes, args.archive_bytes),
                     notifier=notifier)
    except GsyncError as exc:
        print(f"gsync: {exc}", file=sys.stderr)
        return exc.exit_code
    except OSError as exc:
        print(f"gsync: recorder of volume {args.name}: {exc}", file=sys.stderr)
        return GsyncError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
