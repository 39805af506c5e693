"""The slave that is a directory: its index, its limbo, and files written below one descriptor."""
