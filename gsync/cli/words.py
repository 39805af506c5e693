"""The form `gsync COMMAND [SESSION] [VERB] [ARGUMENT…]`, where the session may be left out, and the first verb."""

from __future__ import annotations

from collections.abc import Sequence


def session_and_verb(words: Sequence[str] | None, verbs: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Session (None: the only one), verb and what follows it; UsageError if there is no such verb."""
    from gsync.base.errors import UsageError

    given = list(words or [])
    for at in (0, 1):
        if len(given) > at and given[at] in verbs:
            return (given[0] if at else None), given[at], given[at + 1:]
    if len(given) < 2:
        return (given[0] if given else None), verbs[0], []
    raise UsageError(f"{given[1]}: not one of {', '.join(verbs)}")
