"""Repetition, frequency and presence penalties over tokens seen so far, and the counts that they read.

    logits         [R, V] float32   changed in place; V contiguous
    slots          [R] int64        each row's place in the tables; -1 for a row without penalties, which stays as it is
    prompt_mask    [S, V] bool      token occurs in the prompt
    output_counts  [S, V] int32     how often the token was produced
    repetition     [R] float32      > 0, 1 is off: logits of tokens in prompt or output are divided by it, or multiplied if negative
    frequency      [R] float32      0 is off: times the output count, subtracted
    presence       [R] float32      0 is off: subtracted for tokens in the output

Repetition comes first, then frequency and presence, as vLLM and Hugging Face do it.
The tables stay on the device: a row is set when a request with penalties starts, and `count_tokens` adds what each step produced.
"""

import torch
from torch import Tensor


def apply_penalties_reference(
    logits_RV: Tensor,
    slots: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """Dense, row by row; rows without penalties cost nothing, so this is the CPU path too."""
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            logits, counts = logits_RV[row], output_counts[slot]
            ids = ((counts > 0) | prompt_mask[slot]).nonzero().squeeze(-1)
            seen, times = logits[ids], counts[ids]
            seen = torch.where(seen > 0, seen / repetition[row], seen * repetition[row])
            seen -= frequency[row] * times
            logits[ids] = seen - presence[row] * (times > 0)


def count_tokens_reference(output_counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """Add one to output_counts[slots[i], token_ids[i]] for each i whose slot and id are not -1. Both [R] int64."""
    kept = (slots >= 0) & (token_ids >= 0)
    one = output_counts.new_ones(())
    output_counts.index_put_((slots[kept], token_ids[kept]), one, accumulate=True)
