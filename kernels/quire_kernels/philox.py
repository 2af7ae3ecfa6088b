"""Counter-based random numbers: Philox4x32-10 and the Gumbel noise that sampling adds to logits.

Noise is a pure function of (seed, token id, output position, purpose), so a preempted, resumed or re-batched request draws the same
numbers. Key: the 64-bit seed as two words, low first. Counter: (token id, output position, purpose, 0). The first of the four
words is used. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

Words are int64 tensors in [0, 2**32): torch has no arithmetic on uint32.
"""

import torch
from torch import Tensor

PURPOSE_SAMPLE = 0
"""The draw that picks an output token."""
PURPOSE_DRAFT = 1
"""Reserved: draws of a draft model that proposes tokens."""
PURPOSE_ACCEPT = 2
"""Reserved: the accept-or-reject draw of speculative decoding."""

GUMBEL_MAX = 22.8739
"""No noise exceeds it: -log(2**-33), rounded up."""
GUMBEL_MIN = -2.8116
"""No noise is below it: -log(24 log 2), rounded down."""

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
_MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter; all inputs broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        # int64 products wrap modulo 2**64, and their bits are those of the unsigned product.
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((odd >> 32) & _MASK) ^ c1 ^ k0, odd & _MASK, ((even >> 32) & _MASK) ^ c3 ^ k1, even & _MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & _MASK, (k1 + KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def gumbel_noise(seeds: Tensor, positions: Tensor, token_ids: Tensor, purpose: int = PURPOSE_SAMPLE) -> Tensor:
    """Standard Gumbel noise, float32, of the shape that the three int64 inputs broadcast to."""
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    counter = (token_ids & _MASK, positions & _MASK, zero + purpose, zero)
    word, _, _, _ = philox4x32(counter, (seeds & _MASK, (seeds >> 32) & _MASK))
    return gumbel_of_words(word)


def gumbel_of_words(words: Tensor) -> Tensor:
    """Each word w becomes v = min((w + 1/2) / 2**32, 1 - 2**-24), and the noise is -log(-log(1 - v)).

    The tail that decides between unlikely tokens (v near 0) has 32 bits of resolution. Computed in float64, rounded to float32.
    """
    uniform = words.double().add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_().float()
