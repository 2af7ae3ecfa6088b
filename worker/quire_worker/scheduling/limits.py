"""The scheduler's bounds, as values."""

from dataclasses import dataclass

ANY_ROWS = 2**62
"""No bound."""


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """What one step, one request and the queue may hold. Tokens unless a name says otherwise."""

    max_num_seqs: int
    """Rows of the batch."""
    max_num_batched_tokens: int
    """Tokens computed in one step; >= max_num_seqs."""
    max_model_len: int
    """Prompt + output of one choice; its blocks fit into the pool (see fit_max_model_len)."""
    max_num_queued_reqs: int
    """Choices waiting beyond those that free rows could take."""
    max_num_queued_tokens: int
    """Prompt tokens waiting; a request that finds the queue empty is taken whatever its length."""
    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    max_rows_per_request: int = ANY_ROWS
    """Rows that the choices of one client's request may hold while others wait."""


def fit_max_model_len(wanted: int, num_blocks: int, block_size: int, num_groups: int) -> int:
    """The longest sequence, at most `wanted` tokens, that fits into an otherwise empty pool (the null block holds none)."""
    return min(wanted, (num_blocks - 1) // num_groups * block_size)
