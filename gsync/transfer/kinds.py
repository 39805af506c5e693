"""Maps every kind of operation that the queue's workers carry out to its handler.

A kind's modules are loaded when its first transfer comes. Not here: the queue's own kinds (queue/handlers).
"""

from __future__ import annotations

from collections.abc import Mapping

from gsync.transfer.queue.handlers import OWN, Context, Handler
from gsync.transfer.queue.requests import Transfer


def _send(context: Context, transfer: Transfer) -> None:
    from gsync.transfer.send import carry_out

    carry_out(context, transfer)


def _archive(context: Context, transfer: Transfer) -> None:
    from gsync.transfer.archive.job import carry_out

    carry_out(context, transfer)


HANDLERS: Mapping[str, Handler] = {
    **OWN, **dict.fromkeys(("place", "replicate", "register", "tidy"), _send),
    **dict.fromkeys(("archive", "backup"), _archive)}
