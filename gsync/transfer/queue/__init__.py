"""Transfers that wait: requests, their states in one database, who works on them, retries."""
