"""Brings a model's files into a folder before a worker starts: the init container `quire-fetch`. Never imports torch."""
