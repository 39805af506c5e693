"""Parses `gsync COMMAND [SESSION] [VERB] [ARGUMENT…]`: the session is optional, the first verb is the default."""

from __future__ import annotations

from collections.abc import Sequence


def session_and_verb(words: Sequence[str] | None, verbs: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Session (None: the only one), verb, and the remaining words. UsageError for an unknown verb."""
    from gsync.base.errors import UsageError

    given = list(words or [])
    for at in (0, 1):
        if len(given) > at and given[at] in verbs:
            return (given[0] if at else None), given[at], given[at + 1:]
    if len(given) < 2:
        return (given[0] if given else None), verbs[0], []
    raise UsageError(f"unexpected argument: {given[1]}; expected one of {', '.join(verbs)}")


def no_more(command: str, rest: Sequence[str]) -> None:
    """UsageError if there are more words than the command takes."""
    from gsync.base.errors import UsageError

    if rest:
        raise UsageError(f"{command}: unexpected argument: {rest[0]}")
