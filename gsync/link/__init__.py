"""The link to the slave's host: ssh or a local child, the rows and streams on it, and the master's client."""
