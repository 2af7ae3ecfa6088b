"""A program of its own, run by path: becomes another program that dies with its parent."""
