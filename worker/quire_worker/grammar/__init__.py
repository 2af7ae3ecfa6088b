"""Grammars that outputs must match: compiled off the step's path, then a matcher for each choice and masks for each step. No torch."""
