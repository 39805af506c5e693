"""Runs the processes: those of `gsync run`, the monitor and its workers; and inspects both ends before they start."""
