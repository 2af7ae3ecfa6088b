"""Checks of mixtures of experts in one operation, in floats and in FP8."""

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from gpu.cases import Case, Inputs, dtype_name, seeded
from gpu.compare import Difference
from quire_kernels.moe_fp8 import Fp8Experts
from quire_kernels.ops import Ops, load_ops

FP8 = torch.float8_e4m3fn
MOE_SHAPES = [(1, 1, 3, 32, 16), (3, 4, 16, 80, 72), (70, 2, 4, 128, 100), (300, 8, 128, 512, 192)]
"""Tokens, experts of each, experts, width, an expert's width."""
FP8_BLOCK_SHAPES = [(1, 1, 3, 128, 128), (70, 2, 4, 256, 128), (300, 8, 128, 2048, 768)]
FP8_ERROR = 0.01
"""Of the whole result: a number rounded to its other neighbour in bf16 may be quantised to the next one in FP8. FP8 itself loses 0.03."""


def expert_cases() -> Iterator[Case]:
    """All of them."""
    for shape, dtype in product(MOE_SHAPES, (torch.float32, torch.bfloat16)):
        yield _moe_case(*shape, dtype)
    for shape in MOE_SHAPES:
        yield _fp8_case(*shape, is_blocks=False)
    for shape in FP8_BLOCK_SHAPES:
        yield _fp8_case(*shape, is_blocks=True)


def _routes(generator: torch.Generator, tokens: int, k: int, num_experts: int) -> tuple[Tensor, Tensor]:
    """(weights, experts)"""
    experts = torch.rand(tokens, num_experts, generator=generator).topk(k).indices.sort().values
    if tokens > 2 and k > 1:
        experts[1, 0] = -1
    return torch.randn(tokens, k, generator=generator).softmax(-1), experts


def _moe_case(tokens: int, k: int, num_experts: int, size: int, width: int, dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Inputs:
        generator = seeded("moe", tokens, k, num_experts, size, dtype)
        weights, experts = _routes(generator, tokens, k, num_experts)
        x, gate_up, down = (
            torch.randn(*shape, generator=generator) / scale**0.5
            for shape, scale in (
                ((tokens, size + 8), 1),
                ((num_experts, 2 * width, size), size),
                ((num_experts, size, width), width),
            )
        )
        return {
            "x": x.to(dtype).to(device)[:, :size],
            "weights": weights.to(device),
            "experts": experts.to(device),
            "gate_up": gate_up.to(dtype).to(device),
            "down": down.to(dtype).to(device),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        assert ops.moe is not None, "this backend has no experts in one call"
        return [ops.moe(*inputs.values())]

    def magnitude(inputs: Inputs) -> list[Tensor]:
        # Sums of terms of about 1 in three roundings: the result's size and twice what its terms add up to at most.
        moe = load_ops("reference").moe
        assert moe is not None
        return [moe(*inputs.values()).float().abs() + 2.0]

    name = f"{dtype_name(dtype)} {tokens} tokens, {k} of {num_experts}, {size} x {width}"
    return Case(op="moe", name=name, make=make, run=run, magnitude=magnitude, is_small=tokens < 4)


def _fp8_case(tokens: int, k: int, num_experts: int, size: int, width: int, *, is_blocks: bool) -> Case:
    def stack(generator: torch.Generator, device: torch.device, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        values = torch.randn(num_experts, rows, columns, generator=generator).mul(100).clamp(-448, 448)
        shape = (num_experts, rows // 128, columns // 128) if is_blocks else (num_experts, rows)
        scales = (torch.rand(shape, generator=generator) + 0.5) / (100 * columns**0.5)
        return values.to(FP8).to(device), scales.to(device)

    def make(device: torch.device) -> Inputs:
        generator = seeded("moe fp8", tokens, k, num_experts, size, is_blocks)
        weights, experts = _routes(generator, tokens, k, num_experts)
        gate_up, gate_up_scales = stack(generator, device, 2 * width, size)
        down, down_scales = stack(generator, device, size, width)
        return {
            "x": torch.randn(tokens, size + 8, generator=generator).bfloat16().to(device)[:, :size],
            "weights": weights.to(device),
            "experts": experts.to(device),
            "stacks": Fp8Experts(gate_up=gate_up, gate_up_scales=gate_up_scales, down=down, down_scales=down_scales),
        }

    def run(ops: Ops, inputs: Inputs) -> list[Tensor]:
        assert ops.moe_fp8 is not None, "this backend has no experts in one call"
        return [ops.moe_fp8(*inputs.values())]

    name = f"{'blocks' if is_blocks else 'outputs'} {tokens} tokens, {k} of {num_experts}, {size} x {width}"
    return Case(op="moe_fp8", name=name, make=make, run=run, judge=_judge_fp8, is_small=tokens < 4)


def _judge_fp8(inputs: Inputs, found: list[Tensor], expected: list[Tensor]) -> Difference:
    (out,), (right,) = found, expected
    if out.shape != right.shape or out.dtype != right.dtype:
        return Difference(error=float("inf"), units=float("inf"))
    error = float((out.float() - right.float()).norm() / right.float().norm())
    return Difference(error=error, units=error / FP8_ERROR if math.isfinite(error) else float("inf"))
