"""Norms and gated activations in C++, for every instruction set: against float64, in place, and a row alone as in any company."""

import pytest
import torch
from torch import Tensor

from quire_kernels.cpu.native_elementwise import NativeElementwise
from quire_kernels.cpu.native_library import NativeLibrary

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5 * 2**-7}
"""Two roundings of bfloat16 follow each other: where the first falls to a tie's other side, the product may be a unit and a half away."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def ops(native_isa: NativeLibrary) -> NativeElementwise:
    return NativeElementwise(native_isa)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    wide = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[found.dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (2, 15), (3, 16), (5, 100), (70, 768)])
def test_rows_are_normalised_with_and_without_a_residual(ops, dtype, rows, width):
    wide, weight, residual = (
        torch.randn(rows, width + 5).to(dtype),
        torch.randn(width).to(dtype),
        torch.randn(rows, width),
    )
    x, residual = wide[:, 3 : 3 + width], residual.to(dtype)
    summed = x + residual

    alone = ops.rms_norm(x, weight, 1e-5)
    out, kept = ops.rms_norm(x, weight, 1e-5, residual)

    assert_close(alone, norm(x, weight, 1e-5))
    assert kept is residual
    assert torch.equal(kept, summed)
    assert_close(out, norm(summed, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_are_normalised_where_they_lie(ops, dtype):
    qkv, weight = torch.randn(7, 9, 40).to(dtype), torch.randn(40).to(dtype)

    out = ops.rms_norm(qkv[:, 2:6], weight, 1e-6)

    assert out.is_contiguous()
    assert_close(out, norm(qkv[:, 2:6], weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 70), (40, 256)])
def test_the_first_half_gates_the_second(ops, dtype, rows, size):
    strided = torch.randn(rows, 2 * size + 3).to(dtype).mul(4)[:, : 2 * size]
    gate, up = strided[:, :size].double(), strided[:, size:]

    out = ops.silu_mul(strided)

    assert_close(out, (gate / (1 + torch.exp(-gate))).to(dtype) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(ops, dtype):
    x, weight = torch.randn(40, 100).to(dtype), torch.randn(100).to(dtype)

    assert torch.equal(ops.rms_norm(x, weight, 1e-5), torch.cat([ops.rms_norm(row[None], weight, 1e-5) for row in x]))
    assert torch.equal(ops.silu_mul(x), torch.cat([ops.silu_mul(row[None]) for row in x]))


def test_nan_and_infinity_come_through(ops):
    x = torch.ones(3, 40, dtype=torch.bfloat16)
    x[1, 0], x[2, 39] = float("nan"), float("inf")

    normed, activated = ops.rms_norm(x, torch.ones(40, dtype=torch.bfloat16), 1e-5), ops.silu_mul(x)

    assert normed.isnan().any(dim=1).tolist() == [False, True, True]
    assert activated.isfinite().all(dim=1).tolist() == [True, False, False]


def test_float16_is_left_to_torch(ops):
    x, weight = torch.randn(3, 20).half(), torch.randn(20).half()

    assert_half = torch.testing.assert_close
    assert_half(ops.rms_norm(x, weight, 1e-5), norm(x, weight, 1e-5), rtol=2e-3, atol=1e-4)
    assert ops.silu_mul(x).dtype == torch.float16
