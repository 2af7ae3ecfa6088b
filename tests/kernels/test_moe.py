"""Mixtures of experts: the reference by hand, the kernels against the reference, tiles and their pairs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.gpu.moe import moe_triton
from quire_kernels.gpu.moe_align import align
from quire_kernels.moe import moe_reference


def case(
    tokens: int, per_token: int, num_experts: int, size: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens + size)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    experts = torch.rand(tokens, num_experts, generator=generator).topk(per_token).indices.sort().values
    weights = randn(tokens, per_token).softmax(-1)
    x = randn(tokens, size + 3).to(dtype)[:, :size]
    gate_up = (randn(num_experts, 2 * width, size) / size**0.5).to(dtype)
    return x, weights, experts, gate_up, (randn(num_experts, size, width) / width**0.5).to(dtype)


def test_a_tokens_output_is_the_weighted_sum_of_its_experts_mlps() -> None:
    x, weights, experts, gate_up, down = case(5, 2, 4, 24, 12, torch.float32)

    out = moe_reference(x, weights, experts, gate_up, down)

    for token in range(5):
        expected = torch.zeros(24)
        for weight, expert in zip(weights[token], experts[token].tolist(), strict=True):
            gate, up = gate_up[expert, :12] @ x[token], gate_up[expert, 12:] @ x[token]
            expected += weight * (down[expert] @ (F.silu(gate) * up))
        torch.testing.assert_close(out[token], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "per_token", "num_experts", "size", "width"),
    [(1, 1, 3, 32, 16), (3, 4, 16, 80, 72), (70, 2, 4, 128, 100), (9, 2, 128, 33, 48)],
)
def test_the_kernels_equal_the_reference(
    dtype: torch.dtype, tokens: int, per_token: int, num_experts: int, size: int, width: int
) -> None:
    inputs = case(tokens, per_token, num_experts, size, width, dtype)

    out = moe_triton(*inputs)

    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(out, moe_reference(*inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("run", [moe_reference, moe_triton])
def test_a_place_without_an_expert_adds_nothing(run) -> None:
    x, weights, experts, gate_up, down = case(4, 2, 3, 32, 32, torch.float32)
    experts[1, 1] = experts[2, 0] = experts[2, 1] = -1
    alone = torch.where(experts < 0, 0.0, weights)

    out = run(x, weights, experts, gate_up, down)

    torch.testing.assert_close(out, moe_reference(x, alone, experts.clamp(min=0), gate_up, down), rtol=1e-5, atol=1e-5)
    assert not out[2].any()


def test_each_pair_is_in_one_tile_of_its_expert() -> None:
    experts = torch.randint(-1, 9, (3000, 2), generator=torch.Generator().manual_seed(1))

    pairs, tiles = align(experts, 9, 16)

    found: dict[int, list[int]] = {}
    for tile, expert in enumerate(tiles.tolist()):
        if expert >= 0:
            found.setdefault(expert, []).extend(p for p in pairs[tile * 16 : tile * 16 + 16].tolist() if p < 6000)
    flat = experts.flatten()
    assert {expert: sorted(of) for expert, of in found.items()} == {
        expert: (flat == expert).nonzero().flatten().tolist() for expert in range(9)
    }
    assert (tiles >= 0).sum() == sum(-(-int((flat == expert).sum()) // 16) for expert in range(9))
