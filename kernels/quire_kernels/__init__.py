"""One operation a file: reference, Triton kernel, launcher. Imports nothing of ours."""
