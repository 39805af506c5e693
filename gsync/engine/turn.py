"""A worker's turn at the slave: the connection while it lasts, and the values that outlast it.

Not here: when to connect, and how long to wait while the worker of another subvolume has the slave (worker).
"""

from __future__ import annotations

from gsync.engine.connection import Connection
from gsync.engine.loss import Loss
from gsync.engine.parts import SlaveSide


class Turn:
    """epoch: of the claim under which it connects. loss: what the slave cannot hold; None until the slave was
    reached."""

    def __init__(self, slave: SlaveSide) -> None:
        self.slave = slave
        self.epoch = 0
        self.loss: Loss | None = None
        self._connection: Connection | None = None
        self._sent_before = 0

    @property
    def lasts(self) -> bool:
        return self._connection is not None

    @property
    def connection(self) -> Connection:
        """Call it during the turn only."""
        assert self._connection is not None
        return self._connection

    @property
    def sent(self) -> int:
        """Bytes of file data, over all connections so far."""
        return self._sent_before + (self._connection.sent if self._connection else 0)

    def begin(self) -> Connection:
        """Connect. Busy: it is another worker's turn."""
        self._connection = connection = self.slave.connect(self.epoch)
        self.loss = connection.loss
        return connection

    def check(self) -> None:
        """Raise the error that ended the connection."""
        self.connection.client.check()

    def end(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._sent_before += self._connection.sent
            self._connection = None
