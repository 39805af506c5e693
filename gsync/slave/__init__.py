"""Runs on the slave's host and nowhere else: the agent, the receivers and rsync's server side."""
