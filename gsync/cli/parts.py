"""`gsync worker` and `gsync agent`: the processes that gsync starts itself, for who wants to start one by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from gsync.cli.options import StateOption


def worker(
    session: Annotated[str, typer.Argument(metavar="SESSION")],
    state: StateOption = None,
) -> int:
    """Replicate a session in the foreground, beside a recorder that runs, until stopped. (The monitor starts these.)"""
    from gsync.service import run_worker
    from gsync.state.home import Home

    return run_worker.main([session, "--home", Home(state).path])


def agent(
    words: Annotated[list[str], typer.Argument(metavar="ROOT | --forced ROOT")],
) -> int:
    """Serve one worker on stdin and stdout, for the slave tree ROOT. (The worker starts it; --forced is for the line
    that `gsync keys` prints.)"""
    from gsync.slave import program

    return program.main(words)
