"""`gsync monitor`: the process that keeps the recorders and workers of a node running."""

from __future__ import annotations

from gsync.cli.options import StateOption


def monitor(state: StateOption = None) -> None:
    """Keep the sessions that are started running, until stopped; they go on when this ends.

    One for each node: as a service of systemd (conf/gsync-monitor.service), or in the background by `gsync start`.
    """
    from gsync.base.notify import Notifier
    from gsync.service.monitor import Monitor
    from gsync.state.home import Home

    Monitor(Home(state), notifier=Notifier()).run()
