"""A directory as the slave: its index, its limbo, and files written below one descriptor."""
