"""The engine: plan, launch, sample, commit; its process, its messages and its publisher."""
