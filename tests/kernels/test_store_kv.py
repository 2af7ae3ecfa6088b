"""Keys and values land in their slots, and nowhere else."""

import pytest
import torch
from torch import Tensor

from quire_kernels.ops import OpsName, load_ops


def fused_projection(tokens: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """k and v as slices of one projection that also holds queries, as models produce them."""
    qkv = torch.randn(tokens, 3 * heads, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    return qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]


def layer_view(blocks: int, heads: int, size: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    kv_cache = torch.zeros(blocks, 3, 2, heads, size, dim, dtype=dtype)
    return kv_cache, kv_cache[:, 1, 0], kv_cache[:, 1, 1]


@pytest.mark.parametrize("name", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "size", "dim"), [(1, 1, 16, 32), (7, 4, 16, 64), (5, 3, 48, 80), (9, 2, 32, 128)]
)
def test_each_path_writes_what_the_reference_writes(
    name: OpsName, dtype: torch.dtype, tokens: int, heads: int, size: int, dim: int
) -> None:
    k, v = fused_projection(tokens, heads, dim, dtype)
    slots = torch.randperm(5 * size, generator=torch.Generator().manual_seed(2))[:tokens]
    slots[tokens // 2] = -1 if tokens > 1 else slots[0]
    expected, *expected_layer = layer_view(5, heads, size, dim, dtype)
    found, *found_layer = layer_view(5, heads, size, dim, dtype)
    load_ops("reference").store_kv(k, v, *expected_layer, slots)

    load_ops(name).store_kv(k, v, *found_layer, slots)

    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_slots_hold_the_number_over_its_heads_scale_and_what_is_too_large_becomes_the_largest(
    name: OpsName, dtype: torch.dtype
) -> None:
    k, v = (x * 3 for x in fused_projection(5, 3, 40, dtype))
    k[2, 0, :4] = torch.tensor([1e4, -1e4, 0.0, 1e-6])
    _, k_cache, v_cache = layer_view(2, 3, 16, 40, torch.float8_e4m3fn)
    slots, scales = torch.tensor([3, 17, 31, -1, 0]), torch.tensor([[1.0, 0.5, 2.0], [0.25, 3.0, 1.0]])

    load_ops(name).store_kv_fp8(k, v, k_cache, v_cache, slots, scales)

    for x, cache, scale in ((k, k_cache, scales[0]), (v, v_cache, scales[1])):
        wanted = (x.float() / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                assert torch.equal(cache[slot // 16, :, slot % 16].float(), wanted[token].float())
    assert k_cache[1, 0, 15, :2].tolist() == [448.0, -448.0]


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_a_slot_is_block_times_size_plus_offset_and_other_layers_stay_untouched(name: OpsName) -> None:
    k, v = fused_projection(2, 2, 32, torch.float32)
    kv_cache, k_cache, v_cache = layer_view(4, 2, 16, 32, torch.float32)

    load_ops(name).store_kv(k, v, k_cache, v_cache, torch.tensor([3 * 16 + 5, -1]))

    assert torch.equal(kv_cache[3, 1, 0, :, 5], k[0])
    assert torch.equal(kv_cache[3, 1, 1, :, 5], v[0])
    assert kv_cache.count_nonzero() == 2 * 2 * 32
