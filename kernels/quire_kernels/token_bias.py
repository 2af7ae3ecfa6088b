"""Add to single logits, and cut tokens by a bit mask.

`apply_bias`: logit_bias, stop tokens held back by min_tokens (-inf), bad words.

    logits    [R, V] float32   changed in place; V contiguous
    row_idx   [n] int64        a row each; -1 marks padding and is skipped
    ids       [n] int64        a token id each, skipped outside [0, V); no (row, id) pair appears twice in one call
    values    [n] float32      added; -inf forbids the token

`apply_bitmask`: allowed token ids and grammars.

    rows      [M] int64        the row each mask belongs to; -1 marks padding and is skipped
    bitmask   [M, ceil(V / 32)] int32   bit i % 32 of word i // 32 says whether token i may come (lowest bit first)
"""

import torch
from torch import Tensor


def apply_bias_reference(logits_RV: Tensor, row_idx: Tensor, ids: Tensor, values: Tensor) -> None:
    """One scatter: the fast way on a CPU too."""
    kept = (row_idx >= 0) & (ids >= 0) & (ids < logits_RV.shape[1])
    logits_RV.index_put_((row_idx[kept], ids[kept]), values[kept], accumulate=True)


def apply_bitmask_reference(logits_RV: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    """Bits unpacked for the rows that have a mask; the fast way on a CPU too."""
    kept = rows >= 0
    rows, bitmask = rows[kept], bitmask[kept]
    if rows.numel() == 0:
        return
    bits = (bitmask[..., None] >> torch.arange(32, dtype=torch.int32, device=bitmask.device)) & 1
    allowed = bits.flatten(1)[:, : logits_RV.shape[1]].bool()
    logits_RV[rows] = logits_RV[rows].masked_fill(~allowed, float("-inf"))
