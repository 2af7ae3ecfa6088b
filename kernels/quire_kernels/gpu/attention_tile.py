# mypy: disable-error-code="no-untyped-def"
"""What the attention kernels share: find a tile of keys in the paged cache, fold it into a running softmax, fold two of those together.

A running softmax is (acc, largest, total), in base 2: acc [M, D] is the sum of 2**(score - largest) * value, total [M] that of the
weights. Tiles of BLOCK_N keys are either several whole blocks (one table entry is read for each) or a part of one block.
"""

import triton
import triton.language as tl


@triton.jit
def tile_offsets(
    table, start, first_key, seq_len, stride_n, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """[BLOCK_N] int64 offsets of keys start .. start + BLOCK_N - 1 of one head; 0 for blocks outside [first_key, seq_len).

    stride_n must be a multiple of HEAD_DIM's largest power of two.
    """
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
    # The compiler loses this over the reshape, and would load single numbers, at once, instead of 16 bytes, asynchronously.
    return tl.multiple_of(offsets, HEAD_DIM & -HEAD_DIM)


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
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The running softmax with one more tile; scale_log2 > 0. MASKED False: every query sees every key of it."""
    BLOCK_D: tl.constexpr = q.shape[1]
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
    # An FP8 cache is widened here: its numbers are exact in q's dtype, and its scales are in scale_log2 and in what the caller does.
    scores = tl.dot(q, k.to(q.dtype), input_precision="ieee")
    if MASKED:
        visible = keys[None, :] <= positions[:, None]
        if WINDOW > 0:
            visible = visible & (keys[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, 1) * scale_log2)
    # A query that has seen no key yet keeps -inf; 0 in its place keeps the differences below defined.
    reference = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores * scale_log2 - reference[:, None])
    shrink = tl.exp2(largest - reference)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision="ieee")
    return acc, new_largest, total


@triton.jit
def attend_keys(
    q,
    k_head,
    v_head,
    table,
    positions,
    begin,
    end,
    first_key,
    full_from,
    full_to,
    seq_len,
    stride_n,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The softmax over keys begin .. end - 1, in three runs:

        begin           full_from         full_to            end
          |-- masked (window) --|-- unmasked --|-- masked (diagonal) --|

    begin, full_from and full_to are multiples of BLOCK_N; every query sees every key of full_from .. full_to - 1.
    """
    acc = tl.zeros(q.shape, tl.float32)
    largest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((q.shape[0],), tl.float32)
    if WINDOW > 0:
        for start in range(begin, tl.minimum(full_from, end), BLOCK_N):
            acc, largest, total = attend_tile(
                q, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
                stride_n, scale_log2, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_N, True,
            )  # fmt: skip
        begin = tl.maximum(begin, full_from)
    for start in range(begin, tl.minimum(full_to, end // BLOCK_N * BLOCK_N), BLOCK_N):
        acc, largest, total = attend_tile(
            q, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
            stride_n, scale_log2, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_N, False,
        )  # fmt: skip
    for start in range(tl.maximum(begin, tl.minimum(full_to, end // BLOCK_N * BLOCK_N)), end, BLOCK_N):
        acc, largest, total = attend_tile(
            q, acc, largest, total, k_head, v_head, table, positions, start, first_key, seq_len,
            stride_n, scale_log2, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_N, True,
        )  # fmt: skip
    return acc, largest, total


@triton.jit
def fold_weights(largest, part_largest):
    """(new largest, factor of the softmax so far, reference): a part's factor is exp2(its largest - reference).

    A part of no keys, whose largest is -inf, changes nothing, to the bit.
    """
    new_largest = tl.maximum(largest, part_largest)
    reference = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    return new_largest, tl.exp2(largest - reference), reference
