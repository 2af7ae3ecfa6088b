"""Operations of batch-invariant mode: right, and to the bit what a row gets alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quire_kernels.linear import linear_reference
from quire_kernels.moe_fp8 import Fp8Experts
from quire_kernels.ops import Ops, load_ops
from quire_kernels.quantize_fp8 import FP8

OPS = load_ops("triton", batch_invariant=True)
REFERENCE = load_ops("reference")
TOKENS, SIZE, OUTPUTS, EXPERTS = 150, 256, 144, 4


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def fp8(*shape: int) -> Tensor:
    return (randn(*shape) * 100).clamp(-448, 448).to(FP8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("tokens", "size", "outputs"), [(1, 32, 16), (5, 100, 72), (130, 64, 200), (3, 64, 8200)])
def test_a_linear_layer_is_the_librarys(
    dtype: torch.dtype, has_bias: bool, tokens: int, size: int, outputs: int
) -> None:
    x, weight = randn(tokens, size + 8)[:, :size].to(dtype), (randn(outputs, size) / size**0.5).to(dtype)
    bias = randn(outputs).to(dtype) if has_bias else None

    out = OPS.linear(x, weight, bias)

    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(out, linear_reference(x, weight, bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_scales", [1, 48])
def test_an_fp8_product_is_that_of_the_dequantised_matrices(num_scales: int) -> None:
    x, x_scales = REFERENCE.quantize_fp8(randn(5, 200))
    weight, w_scales = fp8(48, 200), torch.rand(num_scales) + 0.5

    out = OPS.matmul_fp8(x, x_scales, weight, w_scales)

    torch.testing.assert_close(out, REFERENCE.matmul_fp8(x, x_scales, weight, w_scales), rtol=2**-7, atol=1e-2)


def routes(rows: slice) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    experts = torch.rand(TOKENS, EXPERTS, generator=generator).topk(2).indices.sort().values
    return torch.rand(TOKENS, 2, generator=generator)[rows].contiguous(), experts[rows].contiguous()


def linear(ops: Ops, rows: slice) -> Tensor:
    return ops.linear(randn(TOKENS, SIZE).bfloat16()[rows], randn(OUTPUTS, SIZE).bfloat16(), randn(OUTPUTS).bfloat16())


def quantised_product(ops: Ops, rows: slice) -> Tensor:
    x, x_scales = ops.quantize_fp8(randn(TOKENS, SIZE).bfloat16()[rows])
    return ops.matmul_fp8(x, x_scales, fp8(OUTPUTS, SIZE), torch.ones(OUTPUTS))


def block_product(ops: Ops, rows: slice) -> Tensor:
    x, x_scales = ops.quantize_fp8(randn(TOKENS, SIZE).bfloat16()[rows], 128)
    return ops.matmul_fp8_blocks(x, x_scales, fp8(OUTPUTS, SIZE), randn(2, 2).abs())


def experts(ops: Ops, rows: slice) -> Tensor:
    assert ops.moe is not None
    gate_up, down = (randn(EXPERTS, *shape).bfloat16() for shape in ((2 * 128, SIZE), (SIZE, 128)))
    return ops.moe(randn(TOKENS, SIZE).bfloat16()[rows], *routes(rows), gate_up, down)


def fp8_experts(ops: Ops, rows: slice) -> Tensor:
    assert ops.moe_fp8 is not None
    gate_up, down = fp8(EXPERTS, 2 * 128, SIZE), fp8(EXPERTS, SIZE, 128)
    scales = torch.full((EXPERTS, 2, 2), 1e-3), torch.full((EXPERTS, 2, 1), 1e-3)
    stacks = Fp8Experts(gate_up=gate_up, gate_up_scales=scales[0], down=down, down_scales=scales[1])
    return ops.moe_fp8(randn(TOKENS, SIZE).bfloat16()[rows], *routes(rows), stacks)


def norm(ops: Ops, rows: slice) -> Tensor:
    residual = randn(TOKENS, SIZE).bfloat16()[rows].clone()
    return ops.rms_norm(randn(TOKENS, SIZE).bfloat16()[rows], randn(SIZE).bfloat16(), 1e-5, residual)[0]


def quantised_norm(ops: Ops, rows: slice) -> Tensor:
    residual = randn(TOKENS, SIZE).bfloat16()[rows].clone()
    values, scales = ops.rms_norm_fp8(randn(TOKENS, SIZE).bfloat16()[rows], randn(SIZE).bfloat16(), 1e-5, residual, 128)
    return torch.cat((values.float(), scales), 1)


def activation(ops: Ops, rows: slice) -> Tensor:
    values, scales = ops.silu_mul_fp8(randn(TOKENS, SIZE).bfloat16()[rows])
    return torch.cat((values.float(), scales, ops.silu_mul(randn(TOKENS, SIZE).bfloat16()[rows]).float()), 1)


@pytest.mark.parametrize(
    "run",
    [linear, quantised_product, block_product, experts, fp8_experts, norm, quantised_norm, activation],
)
def test_a_rows_bits_are_the_same_alone_in_few_and_in_many(run: Callable[[Ops, slice], Tensor]) -> None:
    together = run(OPS, slice(None))

    for rows in (slice(0, 1), slice(140, 141), slice(60, 77)):
        assert torch.equal(run(OPS, rows), together[rows])
