"""Counts the variants that Triton compiles of each kernel over the sizes that serving brings. Needs no GPU.

    python count_variants.py      one line a kernel: name and variants

What the engine varies from step to step, numbers of rows, tokens and blocks, must not be what a kernel is specialised for: compiling takes
longer than a hundred steps. Widths and heads are one model's throughout. A process of its own, because the interpreter must be off.
"""

from collections import Counter

import torch
from gpu.offline import compiling_only

from quire_kernels.moe_fp8 import Fp8Experts
from quire_kernels.ops import load_ops
from quire_kernels.prepare_inputs import RowState
from quire_kernels.rotate_and_store import CacheTarget
from quire_kernels.sampling import SamplingTensors

OPS = load_ops("triton")
INVARIANT = load_ops("triton", batch_invariant=True)
HEADS, KV_HEADS, DIM, BLOCK_SIZE, HIDDEN, VOCABULARY, GROUPS, MOST_ROWS = 8, 2, 64, 16, 512, 4096, 2, 256
PREFILLS = ((1, 9, 1), (1, 64, 16), (3, 3, 7), (16, 100, 16), (5, 63, 250))
"""Rows, tokens of the first one, blocks of the longest."""
DECODES = ((1, 1, 1), (2, 1, 16), (3, 1, 17), (16, 1, 32), (200, 1, 250))


def int64(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def compute(rows: int, first: int, blocks: int) -> None:
    """What a step launches around the matrix products."""
    tokens = rows - 1 + first
    starts = torch.arange(MOST_ROWS + 1, dtype=torch.int32)[: rows + 1]
    state = RowState(
        token_ids=int32(MOST_ROWS, 5000),
        num_computed=int64(MOST_ROWS),
        block_tables=int32(GROUPS, MOST_ROWS, 300),
        block_size=BLOCK_SIZE,
    )
    found = OPS.prepare_inputs(int64(rows), starts, state, num_tokens=tokens, num_blocks=blocks)
    cache = torch.zeros(300, 2, KV_HEADS, BLOCK_SIZE, DIM, dtype=torch.bfloat16)
    keys, values = cache[:, 0], cache[:, 1]
    qkv = torch.zeros(tokens, HEADS + 2 * KV_HEADS, DIM, dtype=torch.bfloat16)
    q, k, v = qkv.split_with_sizes((HEADS, KV_HEADS, KV_HEADS), dim=1)
    for slots, tables in zip(found.slots.unbind(), found.block_tables.unbind(), strict=True):
        target = CacheTarget(k_cache=keys, v_cache=values, slots=slots)
        q = OPS.rotate_and_store(q, k, v, found.positions, torch.zeros(5000, DIM), target)
        q = q if q.stride() == k.stride() else qkv[:, :HEADS]
        plan = OPS.plan_attention(keys, tables, starts, found.seq_lens, window=None)
        OPS.paged_attention(
            q, keys, values, tables, starts, found.seq_lens,
            scale=0.1, window=None, max_query_len=first, max_seq_len=blocks * BLOCK_SIZE, plan=plan,
        )  # fmt: skip
    hidden = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16)
    OPS.rms_norm(hidden, hidden[0], 1e-5, hidden)
    OPS.silu_mul(hidden)


def choose(rows: int) -> None:
    """What choosing tokens launches."""
    logits, index = torch.zeros(MOST_ROWS, VOCABULARY)[:rows], int64(rows)
    heat, top_p, min_p, *penalties = torch.zeros(6, MOST_ROWS).index_select(1, index).unbind()
    seeds, positions = int64(2, MOST_ROWS).index_select(1, index).unbind()
    params = SamplingTensors(
        temperature=heat, top_k=int32(rows), top_p=top_p, min_p=min_p, seeds=seeds, positions=positions
    )
    OPS.sample(logits, params)
    OPS.top_logprobs(logits, index, 5)
    OPS.apply_penalties(logits, index, torch.zeros(8, VOCABULARY, dtype=torch.bool), int32(8, VOCABULARY), *penalties)
    OPS.append_tokens(index, index, int32(MOST_ROWS, 5000), int64(MOST_ROWS))
    OPS.count_tokens(int32(8, VOCABULARY), index, index)
    OPS.apply_bias(logits, index, index, torch.zeros(rows))
    OPS.apply_bitmask(logits, index, int32(rows, VOCABULARY // 32))


def compute_invariantly(tokens: int) -> None:
    """The products of batch-invariant mode: one variant for each weight, and by it one shape of tile."""
    x = torch.zeros(tokens, HIDDEN, dtype=torch.bfloat16)
    INVARIANT.linear(x, torch.zeros(2 * HIDDEN, HIDDEN, dtype=torch.bfloat16))
    for group in (None, 128):
        values, scales = INVARIANT.quantize_fp8(x, group)
        weight = torch.zeros(2 * HIDDEN, HIDDEN).to(torch.float8_e4m3fn)
        if group is None:
            INVARIANT.matmul_fp8(values, scales, weight, torch.zeros(2 * HIDDEN))
        else:
            INVARIANT.matmul_fp8_blocks(values, scales, weight, torch.zeros(2 * HIDDEN // 128, HIDDEN // 128))
    routes = torch.zeros(tokens, 2), int64(tokens, 2)
    gate_up, down = (torch.zeros(4, *shape, dtype=torch.bfloat16) for shape in ((256, HIDDEN), (HIDDEN, 128)))
    assert INVARIANT.moe is not None and INVARIANT.moe_fp8 is not None
    INVARIANT.moe(x, *routes, gate_up, down)
    stacks = Fp8Experts(
        gate_up=gate_up.to(torch.float8_e4m3fn), gate_up_scales=torch.zeros(4, 256),
        down=down.to(torch.float8_e4m3fn), down_scales=torch.zeros(4, HIDDEN),
    )  # fmt: skip
    INVARIANT.moe_fp8(x, *routes, stacks)


def main() -> None:
    with compiling_only() as found, torch.inference_mode():
        for sizes in (*DECODES, *PREFILLS):
            compute(*sizes)
        for tokens in (1, 3, 16, 64, 200, 3000):
            compute_invariantly(tokens)
        for rows in (1, 2, 3, 4, 15, 16, 200):
            choose(rows)
    for name, variants in sorted(Counter(kernel.name for kernel in found).items()):
        print(name, variants)


if __name__ == "__main__":
    main()
