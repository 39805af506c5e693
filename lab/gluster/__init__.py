"""GlusterFS sites on test hosts, with volumes, geo-replication and faults of their own."""
