"""Mixtures of FP8 experts: the reference against experts of floats that mean the same, the kernels against the reference."""

import pytest
import torch
from torch import Tensor

from quire_kernels.gpu.moe_fp8 import moe_fp8_triton
from quire_kernels.matmul_fp8 import SCALE_BLOCK
from quire_kernels.moe import moe_reference
from quire_kernels.moe_fp8 import Fp8Experts, moe_fp8_reference
from quire_kernels.quantize_fp8 import FP8

SHAPES = [(1, 1, 3, 32, 16), (3, 4, 16, 144, 80), (70, 2, 4, 128, 100)]
BLOCK_SHAPES = [(1, 1, 3, 128, 128), (5, 4, 16, 256, 128), (70, 2, 4, 128, 256)]


def case(
    tokens: int, per_token: int, num_experts: int, size: int, width: int, *, is_blocks: bool
) -> tuple[Tensor, Tensor, Tensor, Fp8Experts]:
    generator = torch.Generator().manual_seed(tokens + size)

    def stack(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        values = (torch.randn(num_experts, rows, columns, generator=generator) * 100).clamp(-448, 448).to(FP8)
        shape = (num_experts, rows // SCALE_BLOCK, columns // SCALE_BLOCK) if is_blocks else (num_experts, rows)
        return values, (torch.rand(shape, generator=generator) + 0.5) / (100 * columns**0.5)

    experts = torch.rand(tokens, num_experts, generator=generator).topk(per_token).indices.sort().values
    weights = torch.randn(tokens, per_token, generator=generator).softmax(-1)
    x = torch.randn(tokens, size + 3, generator=generator).bfloat16()[:, :size]
    (gate_up, gate_up_scales), (down, down_scales) = stack(2 * width, size), stack(size, width)
    stacks = Fp8Experts(gate_up=gate_up, gate_up_scales=gate_up_scales, down=down, down_scales=down_scales)
    return x, weights, experts, stacks


def meant(values: Tensor, scales: Tensor) -> Tensor:
    if scales.dim() == 2:
        return values.float() * scales[..., None]
    return values.float() * scales.repeat_interleave(SCALE_BLOCK, 1).repeat_interleave(SCALE_BLOCK, 2)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize(("shape", "is_blocks"), [((9, 2, 5, 144, 80), False), ((9, 2, 5, 256, 128), True)])
def test_the_reference_loses_only_what_quantising_its_inputs_loses(
    shape: tuple[int, int, int, int, int], is_blocks: bool
) -> None:
    x, weights, experts, stacks = case(*shape, is_blocks=is_blocks)

    out = moe_fp8_reference(x, weights, experts, stacks)

    gate_up, down = meant(stacks.gate_up, stacks.gate_up_scales), meant(stacks.down, stacks.down_scales)
    assert out.dtype == torch.bfloat16
    assert 0.005 < difference(out, moe_reference(x.float(), weights, experts, gate_up, down)) < 0.06


@pytest.mark.parametrize(
    ("shape", "is_blocks"), [*((shape, False) for shape in SHAPES), *((shape, True) for shape in BLOCK_SHAPES)]
)
def test_the_kernels_equal_the_reference_but_for_roundings(
    shape: tuple[int, int, int, int, int], is_blocks: bool
) -> None:
    inputs = case(*shape, is_blocks=is_blocks)

    out = moe_fp8_triton(*inputs)

    # A sum that is rounded to the other neighbour in bfloat16 may end in the next FP8 number.
    assert difference(out, moe_fp8_reference(*inputs)) < 0.004


# The interpreter's word on the rows of such places, which nobody writes: they are quantised with the others, and read by nobody.
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("is_blocks", [False, True])
def test_a_place_without_an_expert_adds_nothing(is_blocks: bool) -> None:
    x, weights, experts, stacks = case(4, 2, 3, 128, 128, is_blocks=is_blocks)
    experts[1, 1] = experts[2, 0] = experts[2, 1] = -1
    alone = torch.where(experts < 0, 0.0, weights)

    out = moe_fp8_triton(x, weights, experts, stacks)

    assert difference(out, moe_fp8_reference(x, alone, experts.clamp(min=0), stacks)) < 0.004
    assert not out[2].any()


def test_a_tokens_result_does_not_depend_on_the_tokens_beside_it_in_its_tile() -> None:
    x, weights, experts, stacks = case(5, 2, 4, 128, 128, is_blocks=True)

    together = moe_fp8_triton(x, weights, experts, stacks)

    assert torch.equal(together[3:4], moe_fp8_triton(x[3:4], weights[3:4], experts[3:4], stacks))


def test_no_tokens_are_no_rows() -> None:
    x, weights, experts, stacks = case(1, 2, 4, 128, 128, is_blocks=True)

    assert moe_fp8_triton(x[:0], weights[:0], experts[:0], stacks).shape == (0, 128)
