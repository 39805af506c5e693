"""How the contents of files are moved: the box of requests, the threads that empty it, streams and rsync."""
