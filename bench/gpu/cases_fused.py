"""Checks of what is fused or quantised: rotary with writing KV, input preparation, FP8 activations and products."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from gpu.cases import Case, Inputs, dtype_name, seeded
from gpu.compare import Difference, difference
from quire_kernels.ops import Ops, load_ops
from quire_kernels.prepare_inputs import RowState
from quire_kernels.rotary import RotaryConfig, rotary_cos_sin
from quire_kernels.rotate_and_store import CacheTarget

_DTYPES = (torch.float32, torch.bfloat16)
FP8 = torch.float8_e4m3fn
FUSED_SHAPES = [(1, 1, 1, 32, 32, 16), (5, 7, 1, 80, 20, 32), (3, 6, 2, 96, 96, 48), (130, 32, 8, 128, 128, 16)]
"""Tokens, heads, KV heads, dim, dims that turn, slots of a block."""


QUANTISE_SHAPES = [
    (1, 64, None),
    (5, 100, None),
    (3, 384, 128),
    (65, 4096, 128),
    (300, 14336, None),
    (7, 14336, 128),
    (3, 28672, None),
]
"""Tokens, width, group."""
MATMUL_SHAPES = [(1, 128, 128), (5, 320, 208), (40, 256, 144), (260, 4096, 6144)]
"""Tokens, inputs, outputs."""
STEPS = ([(1, 0)], [(1, 9), (17, 3), (1, 700), (40, 0)], [(1, i % 600) for i in range(300)])
"""Of rows: tokens of this step, computed before."""


def fused_cases() -> Iterator[Case]:
    """All of them."""
    yield from _rotate_cases()
    yield from _fp8_cases()
    for rows, padding in product(STEPS, (0, 3)):
        yield _inputs_case(rows, padding)
    for (num_rows, vocab_size), dtype in product(((1, 5), (3, 9001), (256, 128_256)), _DTYPES):
        yield _argmax_case(num_rows, vocab_size, dtype)


def _rotate_cases() -> Iterator[Case]:
    for shape in FUSED_SHAPES:
        for dtype, has_norms in product(_DTYPES, (False, True)):
            yield _rotate_case(shape, dtype, has_norms=has_norms, to_fp8=False)
        yield _rotate_case(shape, torch.bfloat16, has_norms=True, to_fp8=True)


def _fp8_cases() -> Iterator[Case]:
    for (tokens, size, group), dtype in product(QUANTISE_SHAPES, _DTYPES):
        yield from _quantise_cases(tokens, size, group, dtype)
    for tokens, size, outputs in MATMUL_SHAPES:
        yield from (_linear_case(tokens, size, outputs, dtype) for dtype in _DTYPES)
        yield _invariant_case(tokens, size, outputs, is_blocks=False)
        yield _invariant_case(tokens, size + 12, outputs + 2, is_blocks=True)
        yield _matmul_case(tokens, size, outputs, one_scale=False)
        yield _matmul_case(tokens, size, outputs, one_scale=True)
        yield _matmul_blocks_case(tokens, size + 12, outputs + 2)


def _randn(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def _rotate_case(shape: tuple[int, ...], dtype: torch.dtype, *, has_norms: bool, to_fp8: bool) -> Case:
    tokens, heads, kv_heads, dim, rotary_dim, size = shape
    blocks = -(-2 * tokens // size) + 2

    def make(device: torch.device) -> Inputs:
        generator = seeded("fused", shape, dtype)
        cache = torch.zeros(blocks, 2, 2, kv_heads, size, dim, device=device).to(FP8 if to_fp8 else dtype)
        slots = torch.randperm(blocks * size, generator=generator)[:tokens]
        slots[tokens // 2] = -1 if tokens > 1 else slots[0]
        rope = RotaryConfig(head_dim=dim, rotary_dim=rotary_dim, theta=500.0, max_position=5000)
        norms = tuple(_randn(generator, device, dtype, dim) for _ in range(2))
        scales = (0.5 + torch.rand(2, kv_heads, generator=generator)).to(device)
        return {
            "qkv": _randn(generator, device, dtype, tokens, heads + 2 * kv_heads, dim),
            "positions": torch.randint(0, 5000, (tokens,), generator=generator).to(device),
            "cos_sin": rotary_cos_sin(rope, dtype, str(device)),
            "cache": cache,
            "slots": slots.to(device),
            "norms": norms if has_norms else None,
            "kv_scales": scales if to_fp8 else None,
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        q, k, v = inputs["qkv"].split((heads, kv_heads, kv_heads), dim=1)
        layer = inputs["cache"][:, 1]
        target = CacheTarget(
            k_cache=layer[:, 0], v_cache=layer[:, 1], slots=inputs["slots"], kv_scales=inputs["kv_scales"]
        )
        norms, positions = inputs["norms"], inputs["positions"]
        q = ops.rotate_and_store(q, k, v, positions, inputs["cos_sin"], target, norms=norms, eps=1e-6)
        return [q, inputs["cache"]]

    def magnitude(inputs: Inputs) -> list[Tensor]:
        # A turned number is the sum of two products of a pair; norms leave rows of about 1, and weights are as large as any number here.
        largest = max(1.0, float(inputs["qkv"].float().abs().max()))
        scale = (
            largest if not has_norms else largest * max(1.0, float(torch.stack(inputs["norms"]).float().abs().max()))
        )
        q_size = torch.full((tokens, heads, dim), scale)
        return [q_size, torch.full(inputs["cache"].shape, scale / (0.5 if to_fp8 else 1.0))]

    label = (
        f"{dtype_name(dtype)}{' to fp8' if to_fp8 else ''} {tokens}x{heads}+{kv_heads}x{dim} turns {rotary_dim} B{size}"
    )
    return Case(
        op="rotate_and_store",
        name=label + (", norms" if has_norms else ""),
        make=make,
        run=run,
        magnitude=magnitude,
        is_small=tokens < 4,
    )


def _quantise_cases(tokens: int, size: int, group: int | None, dtype: torch.dtype) -> Iterator[Case]:
    name, is_small = f"{dtype_name(dtype)} {tokens}x{size} group {group}", tokens * size < 1200

    def make(device: torch.device) -> Inputs:
        generator = seeded("quantise", tokens, size, group, dtype)
        return {
            "wide": (_randn(generator, device, dtype, tokens, 2 * size) * 3).clamp(-60, 60),
            "x": _randn(generator, device, dtype, tokens, size + 3)[:, :size],
            "residual": _randn(generator, device, dtype, tokens, size),
            "weight": torch.rand(size, generator=generator).to(dtype).to(device),
        }

    def norm(ops: Ops, inputs: Inputs) -> list[Tensor]:
        x, residual = inputs["x"], inputs["residual"]
        return [*ops.rms_norm_fp8(x, inputs["weight"], 1e-5, residual, group), residual]

    def quantise(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return list(ops.quantize_fp8(inputs["x"], group))

    def activate(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return list(ops.silu_mul_fp8(inputs["wide"], group))

    for op, run in (("quantize_fp8", quantise), ("silu_mul_fp8", activate), ("rms_norm_fp8", norm)):
        judge = _judge_quantised
        yield Case(op=op, name=name, make=make, run=run, judge=judge, is_small=is_small, group="fp8 activations")


def _judge_quantised(inputs: Inputs, found: list[Tensor], expected: list[Tensor]) -> Difference:
    """Values at most one step apart, scales one unit of bf16, as the largest number may have been rounded to its other neighbour."""
    (values, scales), (right_values, right_scales) = found[:2], expected[:2]
    if values.dtype != right_values.dtype or values.shape != right_values.shape or scales.shape != right_scales.shape:
        return Difference(error=float("inf"), units=float("inf"))
    steps = (values.view(torch.uint8).int() - right_values.view(torch.uint8).int()).abs()
    most = int(torch.where((values.float() == 0) & (right_values.float() == 0), 0, steps).max())
    of_scales = ((scales - right_scales).abs() / right_scales).max()
    others = [difference(f, e) for f, e in zip(found[2:], expected[2:], strict=True)]
    units = max(float(most), float(of_scales) * 2**7, *(other.units for other in others), 0.0)
    return Difference(error=float((values.float() - right_values.float()).abs().max()), units=units)


def _fp8(generator: torch.Generator, device: torch.device, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator).to(FP8).to(device)


def _matmul_case(tokens: int, size: int, outputs: int, *, one_scale: bool) -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("matmul", tokens, size, outputs)
        return {
            "x": _fp8(generator, device, tokens, size),
            "x_scales": (0.5 + torch.rand(tokens, 1, generator=generator)).to(device),
            "weight": _fp8(generator, device, outputs, size),
            "w_scales": (0.5 + torch.rand(1 if one_scale else outputs, generator=generator)).to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        return [ops.matmul_fp8(*inputs.values())]

    def magnitude(inputs: Inputs) -> list[Tensor]:
        x, x_scales, weight, w_scales = inputs.values()
        return [(x.float().abs() * x_scales) @ (weight.float().abs() * w_scales[:, None]).T]

    name = f"{tokens} x {size} x {outputs}" + (", one scale" if one_scale else "")
    return Case(op="matmul_fp8", name=name, make=make, run=run, magnitude=magnitude, is_small=tokens * size < 200)


def _linear_case(tokens: int, size: int, outputs: int, dtype: torch.dtype) -> Case:
    """The library's and that of batch-invariant mode, which must give a row its bits whatever is beside it."""

    def make(device: torch.device) -> Inputs:
        generator = seeded("linear", tokens, size, outputs, dtype)
        return {
            "x": _randn(generator, device, dtype, tokens, size + 8)[:, :size],
            "weight": (torch.randn(outputs, size, generator=generator) / size**0.5).to(dtype).to(device),
            "bias": _randn(generator, device, dtype, outputs),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        x, weight, bias = inputs.values()
        invariant = load_ops("triton", batch_invariant=True) if ops.name == "triton" else ops
        together = invariant.linear(x, weight, bias)
        alone = torch.cat([invariant.linear(x[i : i + 1], weight, bias) for i in (0, tokens // 2, tokens - 1)])
        expected = together[torch.tensor([0, tokens // 2, tokens - 1], device=x.device)]
        same = (alone == expected).all() if ops.name == "triton" else torch.tensor(True)
        return [ops.linear(x, weight, bias), together, invariant.linear(x, weight), same]

    def magnitude(inputs: Inputs) -> list[Tensor]:
        x, weight, bias = (tensor.float().abs() for tensor in inputs.values())
        products = x @ weight.T
        return [products + bias, products + bias, products, torch.tensor(True)]

    name = f"{dtype_name(dtype)} {tokens} x {size} x {outputs}"
    return Case(op="linear", name=name, make=make, run=run, magnitude=magnitude, is_small=tokens == 1)


def _invariant_case(tokens: int, size: int, outputs: int, *, is_blocks: bool) -> Case:
    """FP8 products in batch-invariant mode: right, and rows alone have the bits they have together."""
    ordinary = (
        _matmul_blocks_case(tokens, size, outputs)
        if is_blocks
        else _matmul_case(tokens, size, outputs, one_scale=False)
    )

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        invariant = load_ops("triton", batch_invariant=True) if ops.name == "triton" else ops
        multiply = invariant.matmul_fp8_blocks if is_blocks else invariant.matmul_fp8
        x, x_scales, *weight = inputs.values()
        together, last = multiply(x, x_scales, *weight), tokens - 1
        alone = multiply(x[last:], x_scales[last:], *weight)
        same = (alone == together[last:]).all() if ops.name == "triton" else torch.tensor(True)
        return [together, same]

    def magnitude(inputs: Inputs) -> list[Tensor]:
        assert ordinary.magnitude is not None
        return [*ordinary.magnitude(inputs), torch.tensor(True)]

    return replace(ordinary, name=f"batch-invariant {ordinary.name}", run=run, magnitude=magnitude)


def _matmul_blocks_case(tokens: int, size: int, outputs: int) -> Case:
    k_blocks, n_blocks = -(-size // 128), -(-outputs // 128)

    def make(device: torch.device) -> Inputs:
        generator = seeded("matmul blocks", tokens, size, outputs)
        return {
            "x": _fp8(generator, device, tokens, size),
            "x_scales": (0.5 + torch.rand(tokens, k_blocks, generator=generator)).to(device),
            "weight": _fp8(generator, device, outputs, size),
            "w_scales": (0.5 + torch.rand(n_blocks, k_blocks, generator=generator)).to(device),
        }

    def magnitude(inputs: Inputs) -> list[Tensor]:
        # No scale exceeds 1.5.
        return [2.25 * (inputs["x"].float().abs() @ inputs["weight"].float().abs().T)]

    return Case(
        op="matmul_fp8_blocks",
        name=f"{tokens} x {size} x {outputs}",
        make=make,
        run=lambda ops, inputs: [ops.matmul_fp8_blocks(*inputs.values())],
        magnitude=magnitude,
        is_small=tokens == 1,
    )


def _inputs_case(rows: list[tuple[int, int]], padding: int) -> Case:
    """rows: (tokens of this step, computed before). Padding: rows of -1 at the end, and tokens beyond the last."""
    groups, size, slots_of_state = 2, 16, len(rows) + 5
    most = max(count + before for count, before in rows)

    def make(device: torch.device) -> Inputs:
        generator = seeded("inputs", rows, padding)
        row_ids = torch.randperm(slots_of_state, generator=generator)[: len(rows)]
        computed = torch.zeros(slots_of_state, dtype=torch.int64)
        computed[row_ids] = torch.tensor([before for _, before in rows])
        counts = torch.tensor([count for count, _ in rows] + [0] * padding)
        width = most + 20
        tables = torch.randint(1, 99_999, (groups, slots_of_state, -(-width // size)), generator=generator).int()
        return {
            "row_ids": torch.cat((row_ids, torch.full((padding,), -1))).to(device),
            "query_starts": torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).int().to(device),
            "state": RowState(
                token_ids=torch.randint(0, 9999, (slots_of_state, width), generator=generator).int().to(device),
                num_computed=computed.to(device),
                block_tables=tables.to(device),
                block_size=size,
            ),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        state, num_tokens = inputs["state"], sum(count for count, _ in rows) + 2 * padding
        found = ops.prepare_inputs(
            inputs["row_ids"], inputs["query_starts"], state, num_tokens=num_tokens, num_blocks=-(-most // size)
        )
        # Of the tables only what a row has blocks for is specified.
        tables = [found.block_tables[:, i, : -(-(count + before) // size)] for i, (count, before) in enumerate(rows)]
        used = torch.cat([table.flatten() for table in tables])
        return [found.token_ids, found.positions, found.slots, used, found.seq_lens, state.num_computed]

    name = f"{len(rows)} rows, longest {most}" + (f", {padding} of padding" if padding else "")
    return Case(op="prepare_inputs", name=name, make=make, run=run, is_small=len(rows) < 100)


def _argmax_case(rows: int, vocab_size: int, dtype: torch.dtype) -> Case:
    """Many equals among the largest."""

    def make(device: torch.device) -> Inputs:
        logits = torch.randn(rows, vocab_size, generator=seeded("argmax", rows, vocab_size)).mul(2).round()
        return {"logits": logits.to(dtype).to(device)}

    return Case(
        op="argmax",
        name=f"{dtype_name(dtype)} {rows} x {vocab_size}",
        make=make,
        run=lambda ops, inputs: [ops.argmax(inputs["logits"])],
        is_small=rows < 9,
    )
