"""Stores, where files are put and fetched: directories, other hosts, GlusterFS volumes, vaults and tape."""
