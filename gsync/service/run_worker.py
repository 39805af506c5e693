"""`python -m gsync.service.run_worker SESSION --home DIR`: one worker, from its command line to its exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial

from gsync.base import log
from gsync.base.durable import make_dirs
from gsync.base.errors import GsyncError, UsageError
from gsync.base.log import get_logger
from gsync.base.process import lower_priority
from gsync.service.spare import Spare, link_to
from gsync.session import config
from gsync.session.control import SessionOrders
from gsync.session.session import Session, SessionHome
from gsync.state.home import Home

_log = get_logger(__name__)


def _part(session: Session, home: Home, brick: int | None) -> Session:
    """The session as the worker of this brick has it."""
    parts = session.parts(home.get(session.volume))
    if brick is None and len(parts) == 1:
        return parts[0]
    for part in parts:
        if part.part is not None and part.part.brick == brick:
            return part
    raise UsageError(f"session {session.name}: this node has no brick {brick} of its volume" if brick is not None else
                     f"session {session.name}: its volume has several bricks on this node; choose one with --brick")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gsync worker")
    parser.add_argument("session")
    parser.add_argument("--home", required=True)
    parser.add_argument("--brick", type=int, help="brick to replicate, for a GlusterFS volume")
    parser.add_argument("--once-until", type=int, help="exit once all changes up to this time (ns) are at the slave")
    parser.add_argument("--settings", type=json.loads,
                        help="settings that override those of the files, as a JSON object")
    parser.add_argument("--managed", action="store_true", help="use the session's log and obey its wanted state")
    args = parser.parse_args(argv)
    try:
        home = Home(args.home)
        session = _part(SessionHome(home).get(args.session, args.settings), home, args.brick)
        orders = None
        if args.managed:
            volume_file = os.path.join(home.path, "volumes", session.volume, "volume.json")
            orders = SessionOrders(session, [*config.site_paths(home.path), session.config, volume_file])
            # changes from here on are noticed
            session = _part(SessionHome(home).get(args.session, args.settings), home, args.brick)
        log.setup(session.options.log_level)
        lower_priority(session.options.nice, session.options.ionice)
        make_dirs(session.own)
        spare = Spare(partial(link_to, session))
        spare.prepare()
        from gsync.service.assembly import run  # the rest of the program is loaded while ssh connects

        return run(session, home.get(session.volume), home, args.once_until, orders, spare)
    except GsyncError as exc:
        print(f"gsync: {exc}", file=sys.stderr)
        return exc.exit_code
    except Exception as exc:  # noqa: BLE001 the top: exit code 1 would mean that the work is done
        traceback.print_exc()
        if args.managed:
            _log.error("internal error", traceback=traceback.format_exc())
        print(f"gsync: internal error: {exc!r}; please report it with the lines above", file=sys.stderr)
        return GsyncError.exit_code


if __name__ == "__main__":
    sys.exit(main())
