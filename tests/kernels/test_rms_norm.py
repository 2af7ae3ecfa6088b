"""Root-mean-square normalisation against transformers' rounding, over odd shapes and strides."""

import pytest
import torch
from torch import Tensor

from quire_kernels.cpu.rms_norm import rms_norm_cpu
from quire_kernels.ops import OpsName, load_ops


def checkpoint_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's own definition, written out anew."""
    wide = x.to(torch.float32)
    wide = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if found.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 32), (5, 60), (3, 768), (2, 3, 64), (4, 5, 80)])
def test_rows_are_normalised_as_the_checkpoints_code_does(
    name: OpsName, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)

    out = load_ops(name).rms_norm(x, weight, 1e-5)

    assert out.is_contiguous()
    assert_close(out, checkpoint_norm(x, weight, 1e-5))


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_heads_of_a_fused_projection_are_normalised_where_they_lie(name: OpsName) -> None:
    qkv, weight = torch.randn(5, 9, 64), torch.randn(64)

    out = load_ops(name).rms_norm(qkv[:, 2:6], weight, 1e-6)

    assert_close(out, checkpoint_norm(qkv[:, 2:6].clone(), weight, 1e-6))


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_takes_the_sum_in_place_and_the_sum_is_normalised(name: OpsName, dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(5, 60).to(dtype), torch.randn(5, 60).to(dtype), torch.randn(60).to(dtype)
    summed = x + residual

    out, kept = load_ops(name).rms_norm(x, weight, 1e-5, residual)

    assert kept is residual
    assert torch.equal(kept, summed)
    assert_close(out, checkpoint_norm(summed, weight, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 768), (33, 100), (4, 5, 64)])
def test_the_path_without_cpp_has_the_bits_of_the_reference(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).to(dtype) * 3, torch.randn(shape[-1]).to(dtype)

    out = rms_norm_cpu(x, weight, 1e-6)

    assert torch.equal(out, load_ops("reference").rms_norm(x, weight, 1e-6))
