"""A real Kubernetes for tests: built once for a machine, started on free ports, gone when the tests are."""
