"""The worker of one brick: where it stands, which crawl it takes, and batch after batch until the slave is in sync."""
