"""The user's program as Python runs it: scripts, names, sources, exceptions, threads and ranks."""
