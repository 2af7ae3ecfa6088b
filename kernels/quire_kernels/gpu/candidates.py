# mypy: disable-error-code="no-untyped-def"
"""The few tokens of a row that can matter, found in two passes over it and kept apart, so that what follows need not read the row again.

Tokens are binned by their distance from the row's largest value, BINS_PER_UNIT to a unit of logit; the last bin holds all that is
further away. The candidates are the tokens of the first bins, as many bins as the caller's condition needs, in order of id.
"""

import triton
import triton.language as tl

NUM_BINS = tl.constexpr(256)
BINS_PER_UNIT = tl.constexpr(8)


@triton.jit
def scaled_tile(logits, start, vocab_size, temperature, BLOCK: tl.constexpr):
    """(ids, float32 logits over the temperature), -inf past the end."""
    i = start + tl.arange(0, BLOCK)
    value = tl.load(logits + i, mask=i < vocab_size, other=float("-inf")).to(tl.float32)
    return i, tl.div_rn(value, temperature) + 0.0  # + 0.0 makes -0.0 equal to 0.0 in the integer image


@triton.jit
def order_key(value):
    """int32 that orders as the float32 does."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of_key(key):
    """The float32 of an order key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def bin_of(value, largest):
    """int32 bin of a value that is at most the largest."""
    return tl.minimum((largest - value) * BINS_PER_UNIT, NUM_BINS - 1.0).to(tl.int32)


@triton.jit
def bin_counts(logits, largest, vocab_size, temperature, BLOCK: tl.constexpr):
    """(tokens [NUM_BINS] of each bin, the row's mass, the largest token weighing 1)."""
    counts = tl.zeros((NUM_BINS,), tl.int32)
    total = 0.0
    for start in range(0, vocab_size, BLOCK):
        _, value = scaled_tile(logits, start, vocab_size, temperature, BLOCK)
        counts += tl.histogram(bin_of(value, largest), NUM_BINS)
        total += tl.sum(tl.exp(value - largest))
    return counts, total


@triton.jit
def last_bin_needed(counts, is_enough, ROOM: tl.constexpr):
    """(bin, candidates): the first bin with which it is enough; bin -1 if there is none or it makes more than ROOM candidates."""
    bins = tl.arange(0, NUM_BINS)
    last = tl.min(tl.where(is_enough & (bins < NUM_BINS - 1), bins, NUM_BINS))
    num_candidates = tl.sum(tl.where(bins <= last, counts, 0))
    fits = (last < NUM_BINS) & (num_candidates <= ROOM)
    return tl.where(fits, last, -1), num_candidates


@triton.jit
def collect(logits, values, ids, last_bin, largest, vocab_size, temperature, BLOCK: tl.constexpr):
    """Writes the candidates' scaled values and ids, lowest id first. Others may read them after it."""
    filled = 0
    for start in range(0, vocab_size, BLOCK):
        i, value = scaled_tile(logits, start, vocab_size, temperature, BLOCK)
        is_candidate = ((bin_of(value, largest) <= last_bin) & (i < vocab_size)).to(tl.int32)
        place = filled + tl.cumsum(is_candidate) - is_candidate
        tl.store(values + place, value, mask=is_candidate == 1)
        tl.store(ids + place, i, mask=is_candidate == 1)
        filled += tl.sum(is_candidate)
    tl.debug_barrier()
