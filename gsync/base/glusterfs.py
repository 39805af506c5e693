"""Options that every GlusterFS client of gsync gets, and which bricks are running.

Runs in the agent too: standard library only, Python 3.9.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

# What a client calls itself: GlusterFS's for `no-root-squash`. Like -1, its own replication's, and all below 0, it may
# write what is read-only to others; but requests of those have the least priority at a brick, which is one at a time,
# and as long as more of them wait its idle threads spin (seen with 10.3: more than twice the CPU time). And of a
# sharded volume -1 sees the pieces, and of a file the first.
CLIENT_PID = -4

# For cluster/distribute: once any subvolume is unreachable, also at the start, the client gets SIGTERM. Without this,
# GlusterFS shows what lies there as if it had never existed: names, parts of listings, gfids (seen with 10.3). Every
# volume has that translator, even with one subvolume.
WHOLE_OR_NOTHING = {"assert-no-child-down": "yes"}

# For the same: a client looks on all subvolumes for a name that is not where its hash says. It may still lie there by
# the layout from before a rebalance.
EVERYWHERE = {"lookup-optimize": "off", "lookup-unhashed": "on"}


def truthful(volume: str) -> list[str]:
    """The mount arguments for these options."""
    options = {**WHOLE_OR_NOTHING, **EVERYWHERE}
    return [f"--xlator-option={volume}-dht.{name}={value}" for name, value in options.items()]


def running(status: ET.Element) -> set[str]:
    """The bricks (host:path) that are running and reachable, from `gluster --xml volume status`."""
    return {f"{node.findtext('hostname')}:{node.findtext('path')}" for node in status.iter("node")
            if node.findtext("status") == "1"}
