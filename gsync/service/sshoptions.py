"""Translates a session's options for the parts of a worker: ssh, rsync, hello."""

from __future__ import annotations

import os
import shlex

from gsync.link.openssh import SshOptions
from gsync.session.options import Options
from gsync.session.optionvalues import ssh_words
from gsync.sync.rsync import RsyncSettings


def ssh_options(options: Options, key: str = "") -> SshOptions:
    """ssh's options. key: the path that the session's own key would have; if that exists, ssh uses no other key."""
    return SshOptions(options.ssh_config or None, ssh_words(options.ssh_options), options.connection_timeout,
                      compression=options.compression, command=options.ssh_command,
                      identity=key if key and os.path.exists(key) else None)


def rsync_settings(options: Options) -> RsyncSettings:
    return RsyncSettings(options.rsync_command, tuple(shlex.split(options.rsync_options)),
                         options.log_rsync_performance)


def left_alone(options: Options) -> list[str]:
    """The kinds of attributes at the slave that the worker leaves alone, as `hello` takes them."""
    return [kind for kind, synced in (("xattrs", options.sync_xattrs), ("acls", options.sync_acls)) if not synced]
