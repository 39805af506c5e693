"""Queued transfers: requests, their states in one database, the workers that carry them out, retries."""
