"""The scheduler: which request computes how many tokens in the next step. No torch."""
