"""The master that is a GlusterFS volume: its mounts, its own brick, and what its bricks have recorded."""
