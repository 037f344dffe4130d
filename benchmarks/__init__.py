"""Gridscore beside what one would use instead, on the same work, in one run: `make bench`."""
