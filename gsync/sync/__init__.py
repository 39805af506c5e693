"""Moves the contents of files: the box of requests, the threads that empty it, streams and rsync."""
