"""The form `gsync COMMAND [SESSION] VERB [ARGUMENT…]`, where the session may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

Words = Annotated[list[str] | None, typer.Argument(metavar="[SESSION] VERB")]


def session_and_verb(words: Sequence[str] | None, verbs: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Session (None: the only one), verb and what follows it; UsageError if there is no such verb."""
    from gsync.errors import UsageError

    for at in (0, 1):
        if words and len(words) > at and words[at] in verbs:
            return (words[0] if at else None), words[at], list(words[at + 1:])
    raise UsageError(f"what to do? one of {', '.join(verbs)}")
