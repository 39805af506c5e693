"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

StateOption = Annotated[str | None, typer.Option(
    "--state", metavar="DIR", help="The state folder; default: $GSYNC_HOME, /var/lib/gsync, or the user's own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
