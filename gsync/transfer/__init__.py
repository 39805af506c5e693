"""Bounded transfers: archive, deliver, send, queue, publish. `from gsync.transfer import Client` is for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsync.transfer.client import Client, Sent, Status

__all__ = ["Client", "Sent", "Status"]


def __getattr__(name: str) -> Any:
    """The client, once it is asked for: the parts of this package do not all need each other."""
    if name in __all__:
        from gsync.transfer import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
