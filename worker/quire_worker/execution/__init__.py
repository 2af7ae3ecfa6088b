"""Runners: carry out a plan, on tensors or, faked, without them."""
