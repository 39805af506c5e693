"""A GlusterFS volume as the master: its mounts, the worker's own brick, and the changelogs of its bricks."""
