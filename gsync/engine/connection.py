"""The slave while it is reachable: the control channel, the agent's report on itself, the syncers."""

from __future__ import annotations

from dataclasses import dataclass, field

from gsync.engine.loss import Loss
from gsync.engine.worklist import PAGE
from gsync.link.client import SlaveClient
from gsync.link.link import Link
from gsync.link.protocol import Hello
from gsync.sync.syncer import Syncer


@dataclass
class Connection:
    """direct: whether the engine can put files straight into new directories. listed: names of a directory per call to
    the agent. loss: attributes and names that the slave cannot hold."""

    client: SlaveClient
    hello: Hello
    syncer: Syncer
    link: Link
    direct: bool = True
    listed: int = PAGE
    loss: Loss = field(init=False)

    def __post_init__(self) -> None:
        self.loss = Loss(self.hello)

    @property
    def sent(self) -> int:
        """Bytes of file data sent to the slave."""
        return self.syncer.flow.bytes

    def close(self) -> None:
        self.syncer.close()
        self.client.close()
        self.link.close()
