"""`gsync worker` and `gsync agent`: processes that gsync starts by itself, to start one by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli.options import StateOption


def worker(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Name of the session.")],
    state: StateOption = None,
) -> int:
    """Run the worker of a session in the foreground.

    A recorder must be running. The monitor starts workers by itself.
    """
    from gsync.service import run_worker
    from gsync.state.home import Home

    return run_worker.main([session, "--home", Home(state).path])


def agent(
    words: Annotated[list[str], typer.Argument(
        metavar="ROOT | --forced ROOT", help="Directory of the slave.")],
) -> int:
    """Serve one worker on stdin and stdout.

    The worker starts it. --forced is for the line in authorized_keys that `gsync keys` prints.
    """
    from gsync.slave import program

    return program.main(words)
