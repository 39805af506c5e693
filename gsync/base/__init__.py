"""What every room uses, knowing nothing of replication: errors, clocks, files, processes, SQLite, frames."""
