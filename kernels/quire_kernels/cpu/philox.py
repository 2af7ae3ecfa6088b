"""CPU path of gumbel_noise: few passes, in place, over chunks that stay in the processor's cache. See quire_kernels.philox."""

import torch
from torch import Tensor

from quire_kernels.philox import KEY_STEPS, MULTIPLIERS, NUM_ROUNDS, gumbel_of_words

CHUNK = 16384
_MASK = 0xFFFFFFFF


def gumbel_noise_cpu(seeds: Tensor, positions: Tensor, rows: Tensor, token_ids: Tensor, purpose: int) -> Tensor:
    """[n] float32 noise of token_ids [n] in rows [n] (int64), whose seeds and positions are [R]. The same bits as the reference."""
    noise = torch.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        chunk = slice(start, start + CHUNK)
        row = rows[chunk]
        words = _first_words(seeds[row], positions[row], token_ids[chunk], purpose)
        noise[chunk] = gumbel_of_words(words)
    return noise


def _first_words(seeds: Tensor, positions: Tensor, token_ids: Tensor, purpose: int) -> Tensor:
    """Philox4x32-10, first word only. c1, c3 and the keys may hold rubbish above 32 bits: c0 and c2 are masked once a round.

    seeds and positions are overwritten.
    """
    c0, c1, c2, c3 = (
        token_ids & _MASK,
        positions.clone(),
        torch.full_like(token_ids, purpose),
        torch.zeros_like(token_ids),
    )
    k0, k1 = seeds, seeds >> 32
    even, odd = torch.empty_like(c0), torch.empty_like(c0)
    for _ in range(NUM_ROUNDS):
        torch.mul(c0, MULTIPLIERS[0], out=even)
        torch.mul(c2, MULTIPLIERS[1], out=odd)
        torch.bitwise_right_shift(odd, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        torch.bitwise_right_shift(even, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, odd, c3, even = odd, c1, even, c3
        k0.add_(KEY_STEPS[0])
        k1.add_(KEY_STEPS[1])
    return c0
