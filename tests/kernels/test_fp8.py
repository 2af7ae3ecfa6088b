"""FP8: quantisation of activations, alone and at the end of other operations, and products of quantised matrices."""

import pytest
import torch
from torch import Tensor

from quire_kernels.matmul_fp8 import matmul_fp8_reference, matmul_fp8_torch
from quire_kernels.ops import OpsName, load_ops
from quire_kernels.quantize_fp8 import FP8, FP8_MAX

NAMES: list[OpsName] = ["reference", "cpu", "triton"]
BACKENDS = pytest.mark.parametrize("name", NAMES)


def rows(tokens: int, size: int, dtype: torch.dtype) -> Tensor:
    """Rows of very different magnitude, one of zeros, with a stride of their own."""
    x = torch.randn(tokens, size + 8, generator=torch.Generator().manual_seed(size))
    x *= torch.logspace(-3, 3, tokens)[:, None]
    x[tokens // 2] = 0
    return x.to(dtype)[:, :size]


def assert_within_one_step(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Scales to float32's last bits; values equal, but for a few on the edge between two, which are next to each other."""
    torch.testing.assert_close(found[1], expected[1], rtol=2**-7, atol=0)
    steps = (found[0].view(torch.uint8).int() - expected[0].view(torch.uint8).int()).abs()
    steps = torch.where((found[0].float() == 0) & (expected[0].float() == 0), 0, steps)
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 0.02


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "size", "group"), [(1, 64, None), (5, 100, None), (3, 384, 128), (4, 96, 32), (2, 2432, 128)]
)
def test_each_groups_largest_number_becomes_448_and_the_others_keep_their_share(
    name: OpsName, dtype: torch.dtype, tokens: int, size: int, group: int | None
) -> None:
    x = rows(tokens, size, dtype)

    values, scales = load_ops(name).quantize_fp8(x, group)

    grouped = values.float().view(tokens, -1, group or size)
    assert values.dtype == FP8 and scales.shape == grouped.shape[:2]
    largest = x.float().reshape(grouped.shape).abs().amax(-1)
    assert torch.equal(grouped.abs().amax(-1)[largest > 0], torch.full_like(largest, FP8_MAX)[largest > 0])
    restored = (grouped * scales[..., None]).view(tokens, size)
    error = (restored - x.float()).abs()
    bound = x.float().abs() / 16 + scales.repeat_interleave(group or size, 1) / 1024
    assert (error <= bound).all()


@pytest.mark.parametrize("name", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "size", "group"), [(5, 100, None), (3, 384, 128), (2, 2432, 128), (2, 16500, None), (2, 16512, 128)]
)
def test_an_operation_that_ends_in_fp8_quantises_what_it_would_have_given(
    name: OpsName, dtype: torch.dtype, tokens: int, size: int, group: int | None
) -> None:
    ops, reference = load_ops(name), load_ops("reference")
    gate_up, x = rows(tokens, 2 * size, dtype).clamp(-60, 60), rows(tokens, size, dtype)
    weight, residual = torch.rand(size).to(dtype), torch.randn(tokens, size).to(dtype)
    mine, theirs = residual.clone(), residual.clone()
    summed = residual + x

    assert_within_one_step(ops.silu_mul_fp8(gate_up, group), reference.silu_mul_fp8(gate_up, group))
    assert_within_one_step(
        ops.rms_norm_fp8(x, weight, 1e-5, None, group), reference.rms_norm_fp8(x, weight, 1e-5, None, group)
    )
    assert_within_one_step(
        ops.rms_norm_fp8(x, weight, 1e-5, mine, group), reference.rms_norm_fp8(x, weight, 1e-5, theirs, group)
    )
    assert torch.equal(mine, summed)
    assert torch.equal(theirs, summed)


@pytest.mark.parametrize("num_scales", [1, 48])
def test_torchs_product_is_that_of_the_dequantised_matrices(num_scales: int) -> None:
    x, x_scales = load_ops("reference").quantize_fp8(torch.randn(5, 64))
    weight, w_scales = torch.randn(48, 64).to(FP8), torch.rand(num_scales) + 0.5

    out = matmul_fp8_torch(x, x_scales, weight, w_scales)

    torch.testing.assert_close(out, matmul_fp8_reference(x, x_scales, weight, w_scales), rtol=2**-7, atol=1e-3)


@BACKENDS
@pytest.mark.parametrize(("tokens", "size", "outputs"), [(1, 128, 128), (5, 300, 200), (40, 256, 130), (140, 128, 72)])
def test_block_scaled_products_are_those_of_the_dequantised_matrices(
    name: OpsName, tokens: int, size: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    k_blocks, n_blocks = -(-size // 128), -(-outputs // 128)
    x, weight = (
        torch.randn(tokens, size, generator=generator).to(FP8),
        torch.randn(outputs, size, generator=generator).to(FP8),
    )
    x_scales, w_scales = (torch.rand(rows, k_blocks, generator=generator) + 0.5 for rows in (tokens, n_blocks))
    expected = torch.zeros(tokens, outputs, dtype=torch.float64)
    for k in range(size):
        scaled_x = x[:, k].double() * x_scales[:, k // 128].double()
        scaled_w = weight[:, k].double() * w_scales[:, k // 128].double().repeat_interleave(128)[:outputs]
        expected += scaled_x[:, None] * scaled_w

    out = load_ops(name).matmul_fp8_blocks(x, x_scales, weight, w_scales)

    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-2)
