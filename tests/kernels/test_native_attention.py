"""Paged attention in C++, for every instruction set: against the reference, and to the bit whatever comes with a query."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from quire_kernels.cpu.native_attention import NativeAttention, fits_native_attention
from quire_kernels.cpu.native_kv_order import keys_to_native, keys_to_plain, values_to_native, values_to_plain
from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.paged_attention import paged_attention_reference

GARBAGE_BLOCK = 2**30
DTYPES = (torch.float32, torch.bfloat16)
DECODE = [(1, 5), (1, 64), (1, 65), (1, 1), (1, 300)]
MIXED = [(7, 7), (1, 9), (30, 50), (16, 16), (1, 70), (2, 17)]
LONG = [(1, 2100), (3, 3), (40, 1100), (1, 512), (1, 513)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows over a cache in plain order. Every block that no row may read holds NaN, and its table entries are garbage."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    tables: Tensor
    starts: Tensor
    seq_lens: Tensor
    window: int | None


def make_case(
    rows: list[tuple[int, int]],
    *,
    dim: int = 32,
    kv_heads: int = 2,
    group: int = 3,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    window: int | None = None,
) -> Case:
    """rows: (number of queries, context length)."""
    generator = torch.Generator().manual_seed(dim + len(rows))
    num_blocks = sum(-(-seq_len // block_size) for _, seq_len in rows) + 2
    kv_cache = torch.full((num_blocks, 2, 2, kv_heads, block_size, dim), float("nan"), dtype=dtype)
    free = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(rows), max(-(-s // block_size) for _, s in rows) + 1), GARBAGE_BLOCK, dtype=torch.int32)
    for row, (num_queries, seq_len) in enumerate(rows):
        first_seen = 0 if window is None else max(0, seq_len - num_queries - window + 1)
        for index in range(first_seen // block_size, -(-seq_len // block_size)):
            tables[row, index] = block = free.pop()
            run = torch.randn(2, kv_heads, block_size, dim, generator=generator)
            kv_cache[block, 1] = run.to(dtype)
    starts = torch.tensor([0] + [num_queries for num_queries, _ in rows]).cumsum(0).int()
    qkv = torch.randn(int(starts[-1]), (group + 2) * kv_heads, dim, generator=generator).to(dtype)
    return Case(
        q=qkv[:, : group * kv_heads],
        k_cache=kv_cache[:, 1, 0],
        v_cache=kv_cache[:, 1, 1],
        tables=tables,
        starts=starts,
        seq_lens=torch.tensor([seq_len for _, seq_len in rows]).int(),
        window=window,
    )


def native_caches(case: Case) -> tuple[Tensor, Tensor]:
    """The same runs in native order, strided as a layer's view is."""
    kv_cache = torch.stack((keys_to_native(case.k_cache), values_to_native(case.v_cache)), dim=1)
    return kv_cache[:, 0], kv_cache[:, 1]


def attend(ops: NativeAttention, case: Case, caches: tuple[Tensor, Tensor] | None = None) -> Tensor:
    return ops.paged_attention(
        case.q, *(caches or native_caches(case)), case.tables, case.starts, case.seq_lens,
        scale=case.q.shape[-1] ** -0.5, window=case.window, max_query_len=0, max_seq_len=0,
    )  # fmt: skip


def attend_reference(case: Case) -> Tensor:
    return paged_attention_reference(
        case.q, case.k_cache, case.v_cache, case.tables, case.starts, case.seq_lens,
        scale=case.q.shape[-1] ** -0.5, window=case.window, max_query_len=0, max_seq_len=0,
    )  # fmt: skip


def rows_of(case: Case, row: int, queries: slice) -> Case:
    """Some queries of one row, alone, with the keys up to the last of them."""
    start, end = int(case.starts[row]), int(case.starts[row + 1])
    picked = range(end - start)[queries]
    return Case(
        q=case.q[start + picked.start : start + picked.stop],
        k_cache=case.k_cache,
        v_cache=case.v_cache,
        tables=case.tables[row : row + 1],
        starts=torch.tensor([0, len(picked)]).int(),
        seq_lens=(case.seq_lens[row : row + 1] - (end - start) + picked.stop).int(),
        window=case.window,
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    """bfloat16: weights are rounded to it before they meet the values, so an error is relative to the values, which are about 1."""
    tolerance = 1e-5 if found.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[1, 2, 3])
def library(native_isa: NativeLibrary, request: pytest.FixtureRequest) -> Iterator[NativeLibrary]:
    """With a team of each size."""
    native_isa.set_num_threads(request.param)
    yield native_isa
    native_isa.set_num_threads(2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    ("kv_heads", "group", "block_size"), [(1, 1, 16), (2, 3, 16), (1, 7, 32), (3, 2, 48), (1, 8, 128), (8, 1, 16)]
)
def test_every_shape_equals_the_reference(native_isa, dtype, dim, kv_heads, group, block_size):
    case = make_case(MIXED, dim=dim, kv_heads=kv_heads, group=group, block_size=block_size, dtype=dtype)

    out = attend(NativeAttention(native_isa), case)

    assert_close(out, attend_reference(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 17, 100, 600])
@pytest.mark.parametrize("rows", [DECODE, MIXED, LONG])
def test_windows_and_long_contexts_equal_the_reference(library, dtype, window, rows):
    case = make_case(rows, dim=64, group=5, dtype=dtype, window=window)

    out = attend(NativeAttention(library), case)

    assert_close(out, attend_reference(case))


@pytest.mark.parametrize("group", [24, 25, 71])
def test_groups_larger_than_a_tile_equal_the_reference(native_isa, group):
    case = make_case([(1, 600), (5, 40)], dim=32, kv_heads=2, group=group)

    out = attend(NativeAttention(native_isa), case)

    assert_close(out, attend_reference(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 50, 700])
@pytest.mark.parametrize("chunk", [1, 7, 16, 48, 100])
def test_a_prompt_in_chunks_has_the_bits_of_the_whole_prompt(native_isa, dtype, window, chunk):
    ops = NativeAttention(native_isa)
    case = make_case([(1100, 1100)], dim=64, kv_heads=1, group=3, dtype=dtype, window=window)
    caches = native_caches(case)

    whole = attend(ops, case, caches)

    for start in range(0, 1100, 1 if chunk > 1 else 11):
        if start % chunk == 0:
            part = rows_of(case, 0, slice(start, min(start + chunk, 1100)))
            assert torch.equal(attend(ops, part, caches), whole[start : start + len(part.q)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [MIXED, LONG])
@pytest.mark.parametrize("window", [None, 600])
def test_a_query_has_the_same_bits_alone_as_in_company(library, dtype, rows, window):
    ops = NativeAttention(library)
    case = make_case(rows, dim=80, group=4, dtype=dtype, window=window)
    caches = native_caches(case)

    together = attend(ops, case, caches)

    for row, (num_queries, _) in enumerate(rows):
        for query in {0, num_queries // 2, num_queries - 1}:
            alone = attend(ops, rows_of(case, row, slice(query, query + 1)), caches)
            assert torch.equal(alone[0], together[case.starts[row] + query])


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(native_isa, dtype):
    case = make_case(LONG, dim=64, dtype=dtype)
    outs = []

    for num_threads in (1, 2, 3, 5):
        native_isa.set_num_threads(num_threads)
        outs.append(attend(NativeAttention(native_isa), case))
    native_isa.set_num_threads(2)

    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_context_or_queries_leave_the_others_alone(native_isa, dtype):
    case = make_case([(3, 20), (4, 33)], dtype=dtype)
    padded = Case(
        q=torch.cat((case.q, torch.full_like(case.q, float("nan")))),
        k_cache=case.k_cache,
        v_cache=case.v_cache,
        tables=case.tables[[0, 0, 1, 1]],
        starts=torch.tensor([0, 3, 3, 7, 9]).int(),
        seq_lens=torch.tensor([20, 12, 33, 0]).int(),
        window=None,
    )

    out = attend(NativeAttention(native_isa), padded)

    assert torch.equal(out[:7], attend(NativeAttention(native_isa), case))


def test_one_plan_serves_every_layer_and_any_number_of_heads(native_isa):
    ops = NativeAttention(native_isa)
    case, other = make_case(MIXED, group=3), make_case(MIXED, group=4)
    caches, others = native_caches(case), native_caches(other)
    plan = ops.plan_attention(caches[0], case.tables, case.starts, case.seq_lens, window=None)
    common = {"scale": 0.2, "window": None, "max_query_len": 0, "max_seq_len": 0, "plan": plan}

    first = ops.paged_attention(case.q, *caches, case.tables, case.starts, case.seq_lens, **common)
    second = ops.paged_attention(other.q, *others, case.tables, case.starts, case.seq_lens, **common)
    again = ops.paged_attention(case.q, *caches, case.tables, case.starts, case.seq_lens, **common)

    assert second.shape[1] == 8
    assert torch.equal(first, again)


def test_queries_may_be_strided_and_the_output_given(native_isa):
    ops = NativeAttention(native_isa)
    case = make_case(MIXED)
    scattered = Case(**{**vars(case), "q": case.q.transpose(0, 1).contiguous().transpose(0, 1)})
    out = torch.empty(case.q.shape, dtype=case.q.dtype)

    found = ops.paged_attention(
        scattered.q, *native_caches(case), case.tables, case.starts, case.seq_lens,
        scale=32**-0.5, window=None, max_query_len=0, max_seq_len=0, out=out,
    )  # fmt: skip

    assert found is out
    assert torch.equal(out, attend(ops, case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_native_order_is_undone_by_its_inverse(dtype):
    cache = torch.randn(3, 2, 16, 48).to(dtype)

    keys, values = keys_to_native(cache), values_to_native(cache)

    units = keys.flatten(2).view(torch.int32).view(3, 2, -1, 16)
    assert torch.equal(units[2, 1, 5, 7].view(1).view(dtype), cache[2, 1, 7].view(-1, 4 // dtype.itemsize)[5])
    assert torch.equal(keys_to_plain(keys), cache)
    assert torch.equal(values_to_plain(values), cache)


@pytest.mark.parametrize(
    ("dtype", "dim", "block_size", "fits"),
    [
        (torch.bfloat16, 64, 16, True),
        (torch.float32, 256, 48, True),
        (torch.float16, 64, 16, False),
        (torch.bfloat16, 72, 16, False),
        (torch.bfloat16, 272, 16, False),
        (torch.bfloat16, 64, 8, False),
    ],
)
def test_what_the_native_order_cannot_hold_is_left_to_torch(dtype, dim, block_size, fits):
    assert fits_native_attention(dtype, dim, block_size) is fits
