"""Bounded transfers: archive, deliver, send, queue, publish. Programs use `from gsync.transfer import Client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsync.transfer.client import Client, Sent, Status

__all__ = ["Client", "Sent", "Status"]


def __getattr__(name: str) -> Any:
    """Load the client on first use, so that importing one part of this package does not load all of them."""
    if name in __all__:
        from gsync.transfer import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
