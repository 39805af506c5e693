"""What clients of GlusterFS volumes are told, whoever starts them and for whatever; which bricks there are for them.

Runs in the agent too: standard library only, Python 3.9.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

# What a client calls itself: GlusterFS's for `no-root-squash`. Like -1, its own replication's, and all below 0, it may
# write what is read-only to others; but requests of those have the least priority at a brick, which is one at a time,
# and as long as more of them wait its idle threads spin (seen with 10.3: more than twice the CPU time). And of a
# sharded volume -1 sees the pieces, and of a file the first.
CLIENT_PID = -4

# For cluster/distribute: the process gets SIGTERM once any of its subvolumes is away, also at its start. Without it,
# GlusterFS shows much of what lies there as if it had never been: names, whole parts of listings, gfids (seen with
# 10.3). Every volume has that translator, if of one subvolume.
WHOLE_OR_NOTHING = {"assert-no-child-down": "yes"}

# For the same: what is not where its name says is looked for on all subvolumes. It may lie there by the layout of
# before a rebalance, which this client still has in mind.
EVERYWHERE = {"lookup-optimize": "off", "lookup-unhashed": "on"}


def truthful(volume: str) -> list[str]:
    """The arguments that tell a mount's client so."""
    options = {**WHOLE_OR_NOTHING, **EVERYWHERE}
    return [f"--xlator-option={volume}-dht.{name}={value}" for name, value in options.items()]


def running(status: ET.Element) -> set[str]:
    """The bricks (host:path) that run and can be reached, of `gluster --xml volume status`."""
    return {f"{node.findtext('hostname')}:{node.findtext('path')}" for node in status.iter("node")
            if node.findtext("status") == "1"}
