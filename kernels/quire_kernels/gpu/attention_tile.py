# mypy: disable-error-code="no-untyped-def"
"""What both attention kernels do with one tile of keys: find it in the paged cache, and fold it into a running softmax.

Tiles of BLOCK_N keys are either several whole blocks (one table entry is read for each) or a part of one block.
"""

import triton
import triton.language as tl


@triton.jit
def tile_offsets(
    table, start, first_key, seq_len, stride_n, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """[BLOCK_N] int64 offsets of keys start .. start + BLOCK_N - 1 of one head; 0 for blocks outside [first_key, seq_len)."""
    if BLOCK_N > BLOCK_SIZE:
        blocks = start // BLOCK_SIZE + tl.arange(0, BLOCK_N // BLOCK_SIZE)
        is_used = (blocks * BLOCK_SIZE < seq_len) & ((blocks + 1) * BLOCK_SIZE > first_key)
        ids = tl.load(table + blocks, mask=is_used, other=0).to(tl.int64)
        offsets = ids[:, None] * stride_n + tl.arange(0, BLOCK_SIZE)[None, :] * HEAD_DIM
        offsets = tl.reshape(offsets, (BLOCK_N,))
    else:
        # Every part of a block that is visited holds a key that is used.
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        offsets = block * stride_n + (start % BLOCK_SIZE + tl.arange(0, BLOCK_N)) * HEAD_DIM
    return offsets


@triton.jit
def attend_tile(
    q,
    acc,
    largest,
    total,
    k_head,
    v_head,
    table,
    positions,
    start,
    first_key,
    seq_len,
    stride_n,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The running softmax (acc, largest, total), in base 2, with one more tile. MASKED False: every query sees every key of it."""
    offsets = tile_offsets(table, start, first_key, seq_len, stride_n, HEAD_DIM, BLOCK_SIZE, BLOCK_N)
    keys = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    k_at = k_head + offsets[None, :] + dims[:, None]
    v_at = v_head + offsets[:, None] + dims[None, :]
    if MASKED:
        is_key = (keys >= first_key) & (keys < seq_len)
        k = tl.load(k_at, mask=is_key[None, :] & (dims < HEAD_DIM)[:, None], other=0.0)
        v = tl.load(v_at, mask=is_key[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    elif BLOCK_D > HEAD_DIM:
        k = tl.load(k_at, mask=(dims < HEAD_DIM)[:, None], other=0.0)
        v = tl.load(v_at, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    else:
        k = tl.load(k_at)
        v = tl.load(v_at)
    scores = tl.dot(q, k, input_precision="ieee") * scale_log2
    if MASKED:
        visible = keys[None, :] <= positions[:, None]
        if WINDOW > 0:
            visible = visible & (keys[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    # A query that has seen no key yet keeps -inf; 0 in its place keeps the differences below defined.
    reference = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores - reference[:, None])
    shrink = tl.exp2(largest - reference)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_largest, total
