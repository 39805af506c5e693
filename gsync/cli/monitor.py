"""`gsync monitor`: keeps the recorders and workers of a node running."""

from __future__ import annotations

from gsync.cli.options import StateOption


def monitor(state: StateOption = None) -> None:
    """Keep the started sessions of this node running.

    There is one monitor per node: a systemd service (conf/gsync-monitor.service), or a background process that `gsync
    start` starts. Workers and recorders keep running when the monitor exits.
    """
    from gsync.base.notify import Notifier
    from gsync.service.monitor import Monitor
    from gsync.state.home import Home

    Monitor(Home(state), notifier=Notifier()).run()
