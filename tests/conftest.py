"""Fixtures of every test: a real Kubernetes (tests/cluster/README.md). It starts when the first test asks for it."""

pytest_plugins = ["cluster.fixtures"]
