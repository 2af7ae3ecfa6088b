"""Paged attention: the reference against torch on unpaged keys, and both fast paths against the reference."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.gpu.decode_plan import DecodePlan, plan_decode
from quire_kernels.ops import OpsName, load_ops

GARBAGE_BLOCK = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step's inputs, and the unpaged keys and values [row][S, Hkv, D] that they hold."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    query_starts: Tensor
    seq_lens: Tensor
    window: int | None
    keys: list[Tensor]
    values: list[Tensor]


def make_case(
    rows: list[tuple[int, int]],
    *,
    dim: int = 32,
    kv_heads: int = 2,
    group: int = 3,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
) -> Case:
    """rows: (number of queries, context length). Unused table entries, freed blocks included, are garbage; so are unused slots."""
    generator = torch.Generator().manual_seed(len(rows) + dim)
    num_blocks = sum(-(-seq_len // block_size) for _, seq_len in rows) + 2
    kv_cache = torch.randn(num_blocks, 2, 2, kv_heads, block_size, dim, generator=generator).mul(3).to(dtype)
    k_cache, v_cache = kv_cache[:, 1, 0], kv_cache[:, 1, 1]
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(rows), max(-(-s // block_size) for _, s in rows) + 1), GARBAGE_BLOCK, dtype=torch.int32)
    keys, values = [], []
    for row, (num_queries, seq_len) in enumerate(rows):
        k, v = (torch.randn(seq_len, kv_heads, dim, generator=generator).to(dtype) for _ in range(2))
        first_seen = 0 if window is None else max(0, seq_len - num_queries - window + 1)
        for index in range(-(-seq_len // block_size)):
            chunk = slice(index * block_size, min((index + 1) * block_size, seq_len))
            if chunk.stop > first_seen:
                tables[row, index] = block = free.pop()
                k_cache[block, :, : chunk.stop - chunk.start] = k[chunk].transpose(0, 1)
                v_cache[block, :, : chunk.stop - chunk.start] = v[chunk].transpose(0, 1)
        keys.append(k)
        values.append(v)
    starts = torch.tensor([0] + [num_queries for num_queries, _ in rows]).cumsum(0).int()
    qkv = torch.randn(int(starts[-1]), (group + 2) * kv_heads, dim, generator=generator).to(dtype)
    return Case(
        q=qkv[:, : group * kv_heads],
        k_cache=k_cache,
        v_cache=v_cache,
        block_tables=tables,
        query_starts=starts,
        seq_lens=torch.tensor([seq_len for _, seq_len in rows]).int(),
        window=window,
        keys=keys,
        values=values,
    )


def attend(name: OpsName, case: Case, *, with_plan: bool = False, batch_invariant: bool = False) -> Tensor:
    ops = load_ops(name, batch_invariant=batch_invariant)
    tables = (case.block_tables, case.query_starts, case.seq_lens)
    return ops.paged_attention(
        case.q,
        case.k_cache,
        case.v_cache,
        *tables,
        scale=case.q.shape[-1] ** -0.5,
        window=case.window,
        max_query_len=int(case.query_starts.diff().max()),
        max_seq_len=int(case.seq_lens.max()),
        plan=ops.plan_attention(case.k_cache, *tables, window=case.window) if with_plan else None,
    )


def attend_unpaged(case: Case) -> Tensor:
    """torch's attention in float64, row by row, with a mask written from the definition."""
    outs = []
    for row, (k, v) in enumerate(zip(case.keys, case.values, strict=True)):
        q = case.q[case.query_starts[row] : case.query_starts[row + 1]]
        past = len(k) - len(q)
        width = len(k) if case.window is None else case.window
        mask = torch.tensor([[0 <= past + i - j < width for j in range(len(k))] for i in range(len(q))])
        q_HQD, k_HSD, v_HSD = (x.double().transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(q_HQD, k_HSD, v_HSD, attn_mask=mask, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs).to(case.q.dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """bfloat16: weights are rounded to it before they meet the values, so an error is relative to the values, which are about 1."""
    tolerance = 1e-5 if found.dtype == torch.float32 else 2**-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


DECODE = [(1, 5), (1, 64), (1, 65), (1, 1), (1, 300)]
MIXED = [(7, 7), (1, 9), (30, 50), (16, 16), (1, 70)]
SHAPES = [
    {"dim": 64, "kv_heads": 2, "group": 3, "block_size": 16},
    {"dim": 32, "kv_heads": 3, "group": 1, "block_size": 48},
    {"dim": 80, "kv_heads": 1, "group": 7, "block_size": 32},
    {"dim": 128, "kv_heads": 2, "group": 4, "block_size": 16},
]


@pytest.mark.parametrize("rows", [DECODE, MIXED])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 1, 17, 100])
def test_the_reference_equals_torch_on_unpaged_keys(
    rows: list[tuple[int, int]], shape: dict[str, int], window: int | None
) -> None:
    case = make_case(rows, window=window, **shape)

    out = attend("reference", case)

    assert_close(out, attend_unpaged(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [DECODE, MIXED, [(3, 3), (5, 5), (300, 300), (1, 700), (270, 600), (2, 290)]])
@pytest.mark.parametrize("shape", [*SHAPES, {"dim": 32, "kv_heads": 1, "group": 2, "block_size": 128}])
@pytest.mark.parametrize("window", [None, 1, 17, 100, 1000])
def test_the_cpu_path_equals_the_reference(
    dtype: torch.dtype, rows: list[tuple[int, int]], shape: dict[str, int], window: int | None
) -> None:
    case = make_case(rows, window=window, dtype=dtype, **shape)

    out = attend("cpu", case, with_plan=True)

    assert_close(out, attend("reference", case))


@pytest.mark.parametrize(
    ("rows", "shape", "window"),
    [
        (DECODE, SHAPES[0], None),
        ([(1, 600), (1, 31)], SHAPES[0], 300),
        ([(1, 33)], SHAPES[1], None),
        ([(1, 100), (1, 257), (1, 16)], SHAPES[1], 17),
        ([(1, 45), (1, 2)], SHAPES[2], 40),
        ([(1, 70)], SHAPES[3], None),
        (MIXED, SHAPES[0], None),
        (MIXED, SHAPES[0], 20),
        ([(5, 5)], SHAPES[1], None),
        ([(40, 90), (3, 3)], SHAPES[1], 17),
        ([(21, 60), (2, 9)], SHAPES[2], None),
        ([(33, 140)], SHAPES[3], 50),
        ([(1, 4), (129, 129)], SHAPES[3], None),
        ([(9, 200)], {"dim": 64, "kv_heads": 1, "group": 2, "block_size": 128}, 65),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_triton_kernels_equal_the_reference(
    dtype: torch.dtype, rows: list[tuple[int, int]], shape: dict[str, int], window: int | None
) -> None:
    case = make_case(rows, window=window, dtype=dtype, **shape)

    out = attend("triton", case)

    assert_close(out, attend("reference", case))


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("rows", [[(1, 40), (1, 20)], [(3, 40), (2, 20)]])
def test_one_false_table_entry_changes_its_row_and_no_other(name: OpsName, rows: list[tuple[int, int]]) -> None:
    case = make_case(rows)
    tables = case.block_tables.clone()
    tables[0, 1] = tables[1, 0]

    falsified = attend(name, replace(case, block_tables=tables))

    out, second = attend(name, case), case.query_starts[1]
    assert (out[:second] - falsified[:second]).abs().max() > 0.01
    assert torch.equal(out[second:], falsified[second:])


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_a_window_one_wider_changes_the_result(name: OpsName, num_queries: int) -> None:
    case = make_case([(num_queries, 50)], window=None)

    narrow, wide = (attend(name, replace(case, window=window)) for window in (20, 21))

    assert (narrow - wide).abs().max() > 1e-3


def test_a_lone_rows_keys_are_divided_over_the_device_and_its_queries_share_them() -> None:
    case = make_case([(5, 900), (1, 700)], dim=32, kv_heads=1, group=3)
    plan = load_ops("triton").plan_attention(
        case.k_cache, case.block_tables, case.query_starts, case.seq_lens, window=None
    )

    out = attend("triton", case, with_plan=True)

    assert isinstance(plan, DecodePlan)
    assert plan.rows[:, :2].tolist() == [[0, 4], [4, 3]]
    assert plan.items[:7, :6].tolist() == [
        *([0, 0, 5, 900, begin, min(begin + 256, 900)] for begin in range(0, 900, 256)),
        *([1, 5, 1, 700, begin, min(begin + 256, 700)] for begin in range(0, 700, 256)),
    ]
    assert not plan.items[7:, 2].any()
    assert_close(out, attend("reference", case))


def test_many_rows_take_one_split_each_unless_one_is_far_longer() -> None:
    lens = torch.full((300,), 2000, dtype=torch.int32)
    lens[7] = 60000
    starts = torch.arange(301, dtype=torch.int32)

    plan = plan_decode(starts, lens, num_kv_heads=8, max_keys=65536, window=0, split_len=0)

    splits = plan.rows[:, 1]
    assert splits[7] == 7
    assert splits[:7].tolist() == [1] * 7
    assert (plan.items[:, 2] > 0).sum() == splits.sum() == 306


@pytest.mark.parametrize("window", [None, 300])
def test_rows_of_more_lanes_than_a_program_holds_take_several(window: int | None) -> None:
    case = make_case([(8, 400), (3, 20), (12, 30)], dim=32, kv_heads=1, group=20, window=window)

    out = attend("triton", case)

    assert_close(out, attend("reference", case))


@pytest.mark.parametrize("rows", [DECODE, MIXED])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_fp8_keys_and_values_are_what_is_cached_times_their_heads_scales(
    name: OpsName, rows: list[tuple[int, int]], window: int | None
) -> None:
    case = make_case(rows, window=window, dtype=torch.bfloat16, **SHAPES[0])
    scales = torch.tensor([[0.5, 2.0], [3.0, 0.25]])
    k_fp8, v_fp8 = case.k_cache.to(torch.float8_e4m3fn), case.v_cache.to(torch.float8_e4m3fn)
    k_scale, v_scale = scales[:, None, :, None, None]
    meant = replace(case, k_cache=k_fp8.float() * k_scale, v_cache=v_fp8.float() * v_scale)

    out = load_ops(name).paged_attention_fp8(
        case.q,
        torch.empty_strided(case.k_cache.shape, case.k_cache.stride(), dtype=torch.float8_e4m3fn).copy_(k_fp8),
        torch.empty_strided(case.k_cache.shape, case.k_cache.stride(), dtype=torch.float8_e4m3fn).copy_(v_fp8),
        case.block_tables,
        case.query_starts,
        case.seq_lens,
        kv_scales=scales,
        scale=case.q.shape[-1] ** -0.5,
        window=window,
        max_query_len=int(case.query_starts.diff().max()),
        max_seq_len=int(case.seq_lens.max()),
    )

    torch.testing.assert_close(out, attend("reference", meant), rtol=2**-5, atol=2**-5)


@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_batch_invariance_a_querys_bits_are_those_of_any_chunk_it_comes_in(
    dtype: torch.dtype, window: int | None
) -> None:
    case = make_case([(12, 1100), (3, 40)], dim=32, kv_heads=1, group=2, dtype=dtype, window=window)
    chunks = []
    for num_queries, seq_len in ((9, 1097), (2, 1099), (1, 1100)):
        first = 12 - (1100 - seq_len) - num_queries
        chunk = replace(
            case,
            q=case.q[first : first + num_queries],
            block_tables=case.block_tables[:1],
            query_starts=torch.tensor([0, num_queries], dtype=torch.int32),
            seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        )
        chunks.append(attend("triton", chunk, batch_invariant=True))

    whole = attend("triton", case, batch_invariant=True)

    assert_close(whole, attend("reference", case))
    assert torch.equal(whole[:12], torch.cat(chunks))


@pytest.mark.parametrize("name", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decode_rows_bits_do_not_depend_on_the_rows_beside_it(name: OpsName, dtype: torch.dtype) -> None:
    case = make_case([(1, 30), (1, 290), (1, 64), (1, 130), (1, 270)], dtype=dtype, kv_heads=1)
    alone = replace(
        case,
        q=case.q[1:2],
        block_tables=case.block_tables[1:2],
        query_starts=torch.tensor([0, 1], dtype=torch.int32),
        seq_lens=case.seq_lens[1:2],
    )

    together = attend(name, case, batch_invariant=True)

    assert torch.equal(together[1:2], attend(name, alone, batch_invariant=True))


def test_a_short_prompts_bits_on_the_cpu_do_not_depend_on_the_rows_beside_it() -> None:
    case = make_case([(30, 30), (25, 25), (1, 50), (31, 31)], dtype=torch.bfloat16)
    alone = replace(
        case,
        q=case.q[30:55],
        block_tables=case.block_tables[1:2],
        query_starts=torch.tensor([0, 25], dtype=torch.int32),
        seq_lens=case.seq_lens[1:2],
    )

    together = attend("cpu", case)

    assert torch.equal(together[30:55], attend("cpu", alone))


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_rows_without_context_leave_the_others_alone(name: OpsName) -> None:
    case = make_case([(1, 20), (1, 33)])
    padded = replace(case, seq_lens=torch.tensor([20, 0], dtype=torch.int32))

    out = attend(name, padded)

    assert_close(out[:1], attend("reference", case)[:1])


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("rows", [[(1, 20), (1, 33)], [(2, 20), (1, 33)]])
def test_padding_tokens_after_the_last_row_leave_the_rows_alone(name: OpsName, rows: list[tuple[int, int]]) -> None:
    case = make_case(rows)
    padded = replace(case, q=torch.cat((case.q, torch.randn_like(case.q))))

    out = attend(name, padded)

    assert_close(out[: len(case.q)], attend("reference", case))


def test_the_triton_prefill_kernel_skips_rows_without_queries() -> None:
    case = make_case([(3, 20), (4, 33)])
    padded = replace(
        case,
        query_starts=torch.tensor([0, 3, 3, 7, 7], dtype=torch.int32),
        seq_lens=torch.tensor([20, 12, 33, 0], dtype=torch.int32),
        block_tables=case.block_tables[[0, 0, 1, 1]],
    )

    out = attend("triton", padded)

    assert_close(out, attend("reference", case))
