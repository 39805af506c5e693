"""The tree that is replicated, as a worker sees it: what is at a name now, and the bytes of a file."""
