"""Options of GlusterFS's geo-replication that gsync does not have, and why: for whoever looks for them."""

from __future__ import annotations

NOT_HERE = {
    name: why for names, why in (
        (("checkpoint",), "use `gsync checkpoint`"),
        (("gluster-command-dir", "slave-gluster-command-dir", "secondary-gluster-command-dir", "gluster-command",
          "gluster-cli-options"), "gsync finds gluster in the PATH"),
        (("gluster-params", "slave-gluster-params", "secondary-gluster-params"),
         "gsync chooses the options of its own mounts"),
        (("access-mount", "slave-access-mount", "secondary-access-mount"),
         "a worker's mount of a volume is private, and ends with the worker"),
        (("timeout",), "use slave-timeout"),
        (("isolated-slaves", "isolated-secondarys", "isolated-secondaries", "allow-network"),
         "GlusterFS ignores it too"),
        (("remote-gsyncd",), "gsync copies its agent to the slave by itself"),
        (("special-sync-mode",), "use adopt to take over an existing copy"),
        (("gfid-conflict-resolution",), "the master always wins a conflict"),
        (("changelog-archive-format",), "gsync always uses one tar file a month; see changelog-archive-size"),
        (("changelog-log-level", "gluster-log-level", "cli-log-level", "slave-gluster-log-level",
          "secondary-gluster-log-level"), "each session has one log; see log-level"),
        (("slave-log-level", "secondary-log-level", "slave-log-file", "secondary-log-file"),
         "the agent has no log of its own; its errors are in the session's log"),
        (("log-file", "changelog-log-file", "gluster-log-file", "slave-gluster-log-file",
          "secondary-gluster-log-file"), "each session's log is in its own directory; see `gsync logs`"),
        (("tar-command",), "tarssh does not use tar"),
        (("ssh-options-tar", "rsync-ssh-options"),
         "a session has one ssh connection; use ssh-options"),
        (("rsync-opt-existing", "rsync-opt-ignore-missing-args", "use-rsync-xattrs"),
         "rsync sends only file data; gsync sends names and attributes itself"),
        (("pid-file", "state-file", "state-socket-unencoded", "working-dir", "session-owner", "stime-xattr-prefix",
          "georep-session-working-dir", "glusterd-uuid", "primary-bricks", "secondary-bricks", "master-bricks",
          "slave-bricks"), "internal to GlusterFS"),
        (("use-tarssh",), "use sync-method tarssh"),
    ) for name in names}
