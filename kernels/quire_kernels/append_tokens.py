"""Write what was sampled behind each row's tokens.

    row_ids      [N] int64      the row of each token, no row twice; -1 pads a captured graph and is skipped
    sampled      [N] int64      token ids
    token_ids    [S, L] int32   the rows' tokens; each one's new token goes to where num_tokens says
    num_tokens   [S] int64      tokens of each row, less than L for those named; grows by one for each

Both are changed in place.
"""

from torch import Tensor


def append_tokens_reference(row_ids: Tensor, sampled: Tensor, token_ids: Tensor, num_tokens: Tensor) -> None:
    """One scatter: the fast way on a CPU too."""
    kept = row_ids >= 0
    rows = row_ids[kept]
    token_ids[rows, num_tokens[rows]] = sampled[kept].to(token_ids.dtype)
    num_tokens[rows] += 1
