"""Attributes and names that the slave cannot hold: logged when the connection is made, counted while inodes are sent.

Names that it cannot hold (hard links, devices, symlinks) become failures in the ledger. The agent leaves out attributes
that it cannot hold; this module counts how often, for status.
"""

from __future__ import annotations

import os
import threading

from gsync.base.model import NS
from gsync.link.protocol import Hello
from gsync.master.tree import Xattrs

OWNER, TIMES, XATTRS, ACLS, PRIVILEGED = "owner", "times", "xattrs", "acls", "privileged xattrs"


class Loss:
    """The limits of one slave, as its agent found them. The syncer threads call it, too."""

    def __init__(self, hello: Hello) -> None:
        caps = hello.caps
        self._uid = hello.uid
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()
        attributes = [(OWNER, caps.chown), (TIMES, caps.utime_ns), (XATTRS, caps.xattr), (ACLS, caps.acl),
                      (PRIVILEGED, caps.trusted)]
        self._lacks = {kind for kind, there in attributes if not there}
        self.attributes = [kind for kind, there in attributes if not there]
        self.names = [kind for kind, there in (
            ("hard links", caps.hardlink), ("symlinks", caps.symlink), ("device nodes", caps.mknod),
            ("names that differ only in case", caps.case_sensitive),
            ("names that end in a dot", caps.dots)) if not there]

    def __call__(self, st: os.stat_result, xattrs: Xattrs) -> None:
        """Count the attributes of an inode that is sent and that the slave will not keep."""
        if not self._lacks:
            return
        lost = {kind for name, _ in xattrs if (kind := _kind(name)) in self._lacks}
        if OWNER in self._lacks and st.st_uid != self._uid:
            lost.add(OWNER)
        if TIMES in self._lacks and st.st_mtime_ns % NS:
            lost.add(TIMES)
        if lost:
            with self._lock:
                for kind in lost:
                    self.counts[kind] = self.counts.get(kind, 0) + 1


def _kind(name: bytes) -> str:
    if name.startswith(b"user."):
        return XATTRS
    return ACLS if name.startswith(b"system.posix_acl_") else PRIVILEGED
