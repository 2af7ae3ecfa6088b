"""Checks, benchmarks and tuning of the engine on a GPU, run as `python -m gpu.check` and so on, with bench/ on the path: docs/gpu.md."""
