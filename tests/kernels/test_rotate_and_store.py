"""Norms of heads, rotary embedding and KV writes in one: each path against its parts, one after the other."""

import pytest
import torch
from torch import Tensor

from quire_kernels.ops import OpsName, load_ops
from quire_kernels.rotary import RotaryConfig, rotary_cos_sin
from quire_kernels.rotate_and_store import CacheTarget

NUM_BLOCKS, BLOCK_SIZE = 3, 16


def projection(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens + dim)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=generator).to(dtype)
    return qkv.split_with_sizes((heads, kv_heads, kv_heads), dim=1)


def empty_target(kv_heads: int, dim: int, dtype: torch.dtype, slots: Tensor, scales: Tensor | None) -> CacheTarget:
    kv_cache = torch.zeros(NUM_BLOCKS, 2, 2, kv_heads, BLOCK_SIZE, dim).to(dtype)
    return CacheTarget(k_cache=kv_cache[:, 1, 0], v_cache=kv_cache[:, 1, 1], slots=slots, kv_scales=scales)


def by_parts(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, target: CacheTarget, norms) -> Tensor:
    ops = load_ops("reference")
    if norms is not None:
        q, k = ops.rms_norm(q, norms[0], 1e-5), ops.rms_norm(k, norms[1], 1e-5)
    q, k = ops.apply_rotary(q, k, positions, cos_sin)
    if target.kv_scales is None:
        ops.store_kv(k, v, target.k_cache, target.v_cache, target.slots)
    else:
        ops.store_kv_fp8(k, v, target.k_cache, target.v_cache, target.slots, target.kv_scales)
    return q


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "rotary_dim"), [(1, 4, 1, 32, 32), (5, 6, 3, 80, 20), (7, 5, 5, 96, 96)]
)
def test_queries_and_caches_are_those_of_the_parts(
    name: OpsName,
    dtype: torch.dtype,
    has_norms: bool,
    tokens: int,
    heads: int,
    kv_heads: int,
    dim: int,
    rotary_dim: int,
) -> None:
    q, k, v = projection(tokens, heads, kv_heads, dim, dtype)
    norms = (torch.rand(dim).to(dtype) + 0.5, torch.rand(dim).to(dtype) + 0.5) if has_norms else None
    positions = torch.randint(0, 40, (tokens,))
    cos_sin = rotary_cos_sin(RotaryConfig(head_dim=dim, rotary_dim=rotary_dim, theta=500.0, max_position=40), dtype)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:tokens]
    slots[tokens // 2] = -1 if tokens > 1 else 5
    expected = empty_target(kv_heads, dim, dtype, slots, None)
    found = empty_target(kv_heads, dim, dtype, slots, None)
    wanted = by_parts(q.clone(), k.clone(), v.clone(), positions, cos_sin, expected, norms)

    turned = load_ops(name).rotate_and_store(q, k, v, positions, cos_sin, found, norms=norms, eps=1e-5)

    # A last bit of the norm's scale may differ, and a rotated number is the sum of two that it scales.
    tolerance = {"rtol": 2**-6, "atol": 2**-6} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(turned, wanted, **tolerance)
    torch.testing.assert_close(found.k_cache, expected.k_cache, **tolerance)
    assert torch.equal(found.v_cache, expected.v_cache)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_caches_of_fp8_get_what_the_parts_write(name: OpsName) -> None:
    q, k, v = projection(6, 4, 2, 64, torch.bfloat16)
    scales, slots, positions = torch.tensor([[0.5, 2.0], [0.25, 1.0]]), torch.arange(6) * 7, torch.arange(6)
    cos_sin = rotary_cos_sin(RotaryConfig(head_dim=64, rotary_dim=64, theta=1e4, max_position=8))
    expected, found = (empty_target(2, 64, torch.float8_e4m3fn, slots, scales) for _ in range(2))
    wanted = by_parts(q.clone(), k.clone(), v, positions, cos_sin, expected, None)

    turned = load_ops(name).rotate_and_store(q, k, v, positions, cos_sin, found)

    assert torch.equal(turned, wanted)
    assert torch.equal(found.k_cache.float(), expected.k_cache.float())
    assert torch.equal(found.v_cache.float(), expected.v_cache.float())
