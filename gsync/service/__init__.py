"""Who runs what: the processes of `gsync run`, the monitor and its workers, and what is looked at before they start."""
