"""Checks of paged attention: decode, prefill and mixed steps, windows, odd heads and blocks, caches past 2**31 elements."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpu.cases import Case, Inputs, dtype_name, seeded
from quire_kernels.ops import Ops

GARBAGE_BLOCK = 2**30
"""What table entries hold that must not be used."""
Rows = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the heads and the cache."""

    dim: int = 128
    kv_heads: int = 2
    group: int = 4
    block_size: int = 16
    layers: int = 2


DECODE = [(1, 5), (1, 64), (1, 65), (1, 1), (1, 300)]
MIXED = [(7, 7), (1, 9), (30, 50), (16, 16), (1, 70)]
LONG = [(1, 4097), (1, 1), (1, 9000), (1, 255), (1, 256), (1, 257)]
MANY = [(1, 1 + 37 * i % 700) for i in range(256)]
PREFILL = [(3, 3), (5, 5), (300, 300), (1, 700), (270, 600), (2, 290)]
WHOLE = [(2048, 2048), (1, 1000), (513, 3000)]
SPECULATION = [(4, 300), (2, 17), (1, 90), (5, 5)]

ODD = [
    Shape(dim=64, group=3),
    Shape(dim=32, kv_heads=3, group=1, block_size=48),
    Shape(dim=80, kv_heads=1, group=7, block_size=32),
    Shape(dim=128),
    Shape(dim=256, kv_heads=1, group=2, block_size=32),
    Shape(dim=64, kv_heads=1, group=2, block_size=128),
    Shape(dim=96, kv_heads=1, group=16, block_size=64),
]
_DTYPES = (torch.float32, torch.bfloat16)


def attention_cases() -> Iterator[Case]:
    """All of them."""
    for dtype in _DTYPES:
        group = f"paged_attention {dtype_name(dtype)}"
        for number, shape in enumerate(ODD):
            for rows_name, rows in (("decode", DECODE), ("mixed", MIXED)):
                window = (None, 17, 100)[number % 3]
                is_small = number < 2 and rows_name == "decode"
                # Windows and no windows for each shape, in two processes: every shape is a compilation of some seconds.
                yield _case(rows_name, rows, shape, dtype, None, f"{group} {rows_name}", is_small=is_small)
                if window is not None:
                    yield _case(rows_name, rows, shape, dtype, window, f"{group} {rows_name} windows")
        llama, long = Shape(kv_heads=8), f"{group} long"
        for name, rows in (("long", LONG), ("256 rows", MANY), ("prefill", PREFILL), ("whole prompts", WHOLE)):
            yield _case(name, rows, llama, dtype, None, long)
        yield _case("prefill", PREFILL, Shape(dim=64), dtype, 128, long)
        yield _case("long", LONG, Shape(dim=64), dtype, 300, long)
        yield _case("speculation", SPECULATION, llama, dtype, None, long)
        yield _padding_case(llama, dtype, long)
        yield _false_table_case(llama, dtype, long)
    yield _company_case(Shape(kv_heads=8), torch.bfloat16, "paged_attention bf16 long")
    for name, rows in (("decode", DECODE), ("mixed", MIXED), ("long", LONG), ("prefill", PREFILL)):
        yield _fp8_case(name, rows, Shape(kv_heads=8), None)
        yield _fp8_case(name, rows, Shape(dim=64, group=3, block_size=32), 40)
    for name, rows in (("decode", DECODE), ("mixed", MIXED)):
        yield _case(f"{name}, cache past 2**31", rows, Shape(kv_heads=8), torch.bfloat16, None, "far cache", far=True)


def _case(
    name: str,
    rows: Rows,
    shape: Shape,
    dtype: torch.dtype,
    window: int | None,
    group: str,
    *,
    is_small: bool = False,
    far: bool = False,
) -> Case:
    label = f"{name} {dtype_name(dtype)} D{shape.dim} {shape.kv_heads}x{shape.group} B{shape.block_size}"

    def make(device: torch.device) -> Inputs:
        return step(rows, shape, dtype, window, device, far=far)

    return Case(
        op="paged_attention",
        name=label + (f" window {window}" if window else ""),
        make=make,
        run=lambda ops, inputs: [attend(ops, inputs)],
        magnitude=_magnitude,
        is_small=is_small,
        group=group,
    )


def step(
    rows: Rows, shape: Shape, dtype: torch.dtype, window: int | None, device: torch.device, *, far: bool = False
) -> Inputs:
    """A step's inputs; rows are (queries, context). Unused slots and table entries are garbage. `far`: on a GPU the cache has more than
    2**31 elements before the blocks that are used."""
    generator = seeded(rows, shape, dtype, window)
    size, dim, heads = shape.block_size, shape.dim, shape.kv_heads
    counts = [-(-seq_len // size) for _, seq_len in rows]
    used = sum(counts) + 2
    content = torch.randn(used, shape.layers, 2, heads, size, dim, generator=generator).to(dtype)
    block_len = shape.layers * 2 * heads * size * dim
    base = 2**31 // block_len + 1 if far and device.type == "cuda" else 0
    kv_cache = torch.empty(base + used, *content.shape[1:], dtype=dtype, device=device)
    kv_cache[base:] = content.to(device)
    free = (torch.randperm(used, generator=generator) + base).tolist()
    tables = torch.full((len(rows), max(counts) + 3), GARBAGE_BLOCK, dtype=torch.int32)
    for row, (num_queries, seq_len) in enumerate(rows):
        first_seen = 0 if window is None else max(0, seq_len - num_queries - window + 1)
        for index in range(first_seen // size, counts[row]):
            tables[row, index] = free.pop()
    starts = torch.tensor([0] + [num_queries for num_queries, _ in rows]).cumsum(0).int()
    q_dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    qkv = torch.randn(int(starts[-1]), (shape.group + 2) * heads, dim, generator=generator).to(q_dtype).to(device)
    return {
        "q": qkv[:, : shape.group * heads],
        "k_cache": kv_cache[:, shape.layers - 1, 0],
        "v_cache": kv_cache[:, shape.layers - 1, 1],
        "block_tables": tables.to(device),
        "query_starts": starts.to(device),
        "seq_lens": torch.tensor([seq_len for _, seq_len in rows], dtype=torch.int32, device=device),
        "window": window,
        "max_query_len": max(num_queries for num_queries, _ in rows),
        "max_seq_len": max(seq_len for _, seq_len in rows),
    }


def attend(ops: Ops, inputs: Inputs, *, with_plan: bool = True) -> Tensor:
    """The operation as the decoder calls it, on an FP8 cache if the inputs have scales. The output starts as NaN, so what is not
    written shows."""
    tables = (inputs["block_tables"], inputs["query_starts"], inputs["seq_lens"])
    plan = ops.plan_attention(inputs["k_cache"], *tables, window=inputs["window"]) if with_plan else None
    out = torch.full(inputs["q"].shape, float("nan"), dtype=inputs["q"].dtype, device=inputs["q"].device)
    attention = ops.paged_attention
    if "kv_scales" in inputs:
        attention = partial(ops.paged_attention_fp8, kv_scales=inputs["kv_scales"])
    return attention(
        inputs["q"],
        inputs["k_cache"],
        inputs["v_cache"],
        *tables,
        scale=inputs["q"].shape[-1] ** -0.5,
        window=inputs["window"],
        max_query_len=inputs["max_query_len"],
        max_seq_len=inputs["max_seq_len"],
        plan=plan,
        out=out,
    )


def _magnitude(inputs: Inputs) -> list[Tensor]:
    from quire_kernels.ops import load_ops

    v_cache = inputs["v_cache"]
    return [attend(load_ops("reference"), inputs | {"v_cache": v_cache.float().abs().to(v_cache.dtype)})]


def _fp8_case(name: str, rows: Rows, shape: Shape, window: int | None) -> Case:
    """Queries in bf16 over an FP8 cache."""

    def make(device: torch.device) -> Inputs:
        inputs = step(rows, shape, torch.float8_e4m3fn, window, device)
        scales = 0.5 + torch.rand(2, shape.kv_heads, generator=seeded("scales", shape))
        return inputs | {"kv_scales": scales.to(device)}

    label = f"{name} D{shape.dim} {shape.kv_heads}x{shape.group} B{shape.block_size}"
    return Case(
        op="paged_attention_fp8",
        name=label + (f" window {window}" if window else ""),
        make=make,
        run=lambda ops, inputs: [attend(ops, inputs)],
        magnitude=_magnitude,
        is_small=name == "decode" and window is not None,
    )


def _padding_case(shape: Shape, dtype: torch.dtype, group: str) -> Case:
    """Padding of a captured graph: tokens after the last row, and rows of context 0. The rows' own results are compared."""
    rows = [(1, 20), (1, 33), (1, 500)]

    def make(device: torch.device) -> Inputs:
        inputs = step(rows, shape, dtype, None, device)
        q, tables = inputs["q"], inputs["block_tables"]
        starts, lens = inputs["query_starts"], inputs["seq_lens"]
        last = int(starts[-1])
        return inputs | {
            "q": torch.cat((q, q[:2])),
            "block_tables": torch.cat((tables, torch.full_like(tables[:2], GARBAGE_BLOCK))),
            "query_starts": torch.cat((starts, torch.tensor([last + 1, last + 2], dtype=torch.int32, device=device))),
            "seq_lens": torch.cat((lens, torch.zeros(2, dtype=torch.int32, device=device))),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return [attend(ops, inputs)[: len(rows)]]

    return Case(
        op="paged_attention",
        name=f"padded rows {dtype_name(dtype)}",
        make=make,
        run=run,
        magnitude=lambda inputs: [_magnitude(inputs)[0][: len(rows)]],
        group=group,
    )


def _false_table_case(shape: Shape, dtype: torch.dtype, group: str) -> Case:
    """Falsification: one false table entry must change its row, and no other by a bit. Compares two flags with the truth."""

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        tables = inputs["block_tables"].clone()
        tables[0, 1] = tables[1, 0]
        right, wrong = attend(ops, inputs), attend(ops, inputs | {"block_tables": tables})
        changed = (right[:1].float() - wrong[:1].float()).abs().max() > 1e-3
        others = torch.tensor(bool(torch.equal(right[1:], wrong[1:])))
        return [changed.cpu(), others]

    return Case(
        op="paged_attention",
        name=f"a false table entry shows in its row only {dtype_name(dtype)}",
        make=lambda device: step([(1, 40), (1, 20), (1, 300)], shape, dtype, None, device),
        run=run,
        group=group,
    )


def _company_case(shape: Shape, dtype: torch.dtype, group: str) -> Case:
    """Twice the same call gives the same bits."""

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return [torch.tensor(bool(torch.equal(attend(ops, inputs), attend(ops, inputs))))]

    return Case(
        op="plan_attention",
        name=f"two runs have the same bits {dtype_name(dtype)}",
        make=lambda device: step(MANY, shape, dtype, None, device),
        run=run,
        group=group,
    )
