"""Model architectures and weights."""
