"""Kubernetes objects as plain dictionaries, one module per thing that gets pods. Pure: no cluster, no files."""
