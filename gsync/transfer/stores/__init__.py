"""Places that files are put to and fetched from: directories, other hosts, GlusterFS volumes, vaults and tape."""
