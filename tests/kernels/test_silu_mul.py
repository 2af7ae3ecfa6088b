"""silu(gate) * up."""

import pytest
import torch

from quire_kernels.ops import OpsName, load_ops


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (3, 70), (2, 1500)])
def test_the_first_half_gates_the_second(name: OpsName, dtype: torch.dtype, tokens: int, size: int) -> None:
    strided = torch.randn(tokens, 2 * size + 3).to(dtype).mul(4)[:, : 2 * size]
    gate, up = strided[:, :size].double(), strided[:, size:]

    out = load_ops(name).silu_mul(strided)

    expected = (gate / (1 + torch.exp(-gate))).to(dtype) * up
    torch.testing.assert_close(out, expected, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-6)
    assert out.is_contiguous()
