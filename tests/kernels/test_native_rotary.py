"""Norms of heads, rotary embedding and KV writes in C++, for every instruction set, against the reference of each."""

import pytest
import torch
from torch import Tensor

from quire_kernels.cpu.native_kv_order import keys_to_native, keys_to_plain, values_to_native, values_to_plain
from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.cpu.native_rotary import NativeRotary
from quire_kernels.rotary import RotaryConfig, apply_rotary_reference, rotary_cos_sin
from quire_kernels.rotate_and_store import CacheTarget, rotate_and_store_reference
from quire_kernels.store_kv import store_kv_reference

DTYPES = (torch.float32, torch.bfloat16)
NUM_BLOCKS, BLOCK_SIZE = 3, 32
SHAPES = [(1, 4, 1, 32, 32), (5, 6, 3, 80, 20), (7, 5, 5, 96, 96), (90, 3, 1, 128, 64), (2, 2, 1, 256, 256)]


@pytest.fixture
def ops(native_isa: NativeLibrary) -> NativeRotary:
    return NativeRotary(native_isa)


def projection(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=torch.Generator().manual_seed(dim)).to(dtype)
    return qkv.split_with_sizes((heads, kv_heads, kv_heads), dim=1)


def some_slots(tokens: int) -> Tensor:
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=torch.Generator().manual_seed(tokens))[:tokens]
    slots[tokens // 2] = -1 if tokens > 1 else slots[0]
    return slots


def filled_cache(kv_heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    """[blocks, layers, K or V, kv heads, slots, dim]; only layer 1 is written."""
    shape = (NUM_BLOCKS, 2, 2, kv_heads, BLOCK_SIZE, dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def in_native_order(kv_cache: Tensor) -> Tensor:
    return torch.stack((keys_to_native(kv_cache[:, :, 0]), values_to_native(kv_cache[:, :, 1])), dim=2)


def in_plain_order(kv_cache: Tensor) -> Tensor:
    return torch.stack((keys_to_plain(kv_cache[:, :, 0]), values_to_plain(kv_cache[:, :, 1])), dim=2)


def table(dim: int, rotary_dim: int, dtype: torch.dtype) -> Tensor:
    return rotary_cos_sin(RotaryConfig(head_dim=dim, rotary_dim=rotary_dim, theta=500.0, max_position=40), dtype)


def bits_apart(found: Tensor, expected: Tensor) -> int:
    """Largest distance in units of the last place, of numbers not tiny beside the others."""
    integer = torch.int32 if found.dtype == torch.float32 else torch.int16
    distance = (found.contiguous().view(integer).long() - expected.contiguous().view(integer).long()).abs()
    return int(distance[expected.abs() > 1e-3].max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table_dtype", [torch.float32, None])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "rotary_dim"), SHAPES)
def test_queries_and_keys_turn_as_the_reference_turns_them(
    ops, dtype, table_dtype, tokens, heads, kv_heads, dim, rotary_dim
):
    q, k, _ = projection(tokens, heads, kv_heads, dim, dtype)
    positions, cos_sin = torch.randint(0, 40, (tokens,)), table(dim, rotary_dim, table_dtype or dtype)
    expected = apply_rotary_reference(q.clone(), k.clone(), positions, cos_sin)

    turned = ops.apply_rotary(q, k, positions, cos_sin)

    assert turned[0] is q
    assert turned[1] is k
    assert torch.equal(q, expected[0])
    assert torch.equal(k, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "rotary_dim"), SHAPES)
def test_keys_and_values_land_in_their_slots_and_nowhere_else(ops, dtype, tokens, heads, kv_heads, dim, rotary_dim):
    _, k, v = projection(tokens, heads, kv_heads, dim, dtype)
    slots, expected = some_slots(tokens), filled_cache(kv_heads, dim, dtype)
    found = in_native_order(expected)
    store_kv_reference(k, v, expected[:, 1, 0], expected[:, 1, 1], slots)

    ops.store_kv(k, v, found[:, 1, 0], found[:, 1, 1], slots)

    assert torch.equal(in_plain_order(found), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim", "rotary_dim"), SHAPES)
def test_the_fused_operation_equals_its_parts(ops, dtype, has_norms, tokens, heads, kv_heads, dim, rotary_dim):
    q, k, v = projection(tokens, heads, kv_heads, dim, dtype)
    positions, cos_sin, slots = torch.randint(0, 40, (tokens,)), table(dim, rotary_dim, dtype), some_slots(tokens)
    norms = (torch.rand(dim).to(dtype) + 0.5, torch.rand(dim).to(dtype) + 0.5) if has_norms else None
    expected = filled_cache(kv_heads, dim, dtype)
    found = in_native_order(expected)
    parts, fused = (
        CacheTarget(k_cache=cache[:, 1, 0], v_cache=cache[:, 1, 1], slots=slots) for cache in (expected, found)
    )
    wanted = rotate_and_store_reference(q.clone(), k.clone(), v, positions, cos_sin, parts, norms=norms, eps=1e-5)

    turned = ops.rotate_and_store(q, k, v, positions, cos_sin, fused, norms=norms, eps=1e-5)

    stored = in_plain_order(found)
    assert turned is q
    assert torch.equal(stored[:, 0], expected[:, 0])
    assert torch.equal(stored[:, 1, 1], expected[:, 1, 1])
    if norms is None:
        assert torch.equal(turned, wanted)
        assert torch.equal(stored, expected)
        return
    # A norm's scale may differ in its last bit, and a rotated number is a sum of two numbers that it scaled, which may cancel.
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(turned, wanted, **tolerance)
    torch.testing.assert_close(stored, expected, **tolerance)
    if rotary_dim < dim:
        assert bits_apart(turned[..., rotary_dim:], wanted[..., rotary_dim:]) <= (1 if dtype == torch.bfloat16 else 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_has_the_same_bits_alone_as_in_company(ops, dtype):
    tokens, dim = 40, 64
    q, k, v = projection(tokens, 4, 2, dim, dtype)
    positions, cos_sin, slots = torch.arange(tokens) % 40, table(dim, dim, dtype), torch.arange(tokens)
    norms = (torch.rand(dim).to(dtype), torch.rand(dim).to(dtype))
    together, alone = torch.zeros(2, NUM_BLOCKS, 2, 2, BLOCK_SIZE, dim, dtype=dtype)
    copies = [x.clone() for x in (q, k, v)]
    for token in range(tokens):
        one = slice(token, token + 1)
        target = CacheTarget(k_cache=alone[:, 0], v_cache=alone[:, 1], slots=slots[one])
        ops.rotate_and_store(*(x[one] for x in copies), positions[one], cos_sin, target, norms=norms, eps=1e-6)

    target = CacheTarget(k_cache=together[:, 0], v_cache=together[:, 1], slots=slots)
    ops.rotate_and_store(q, k, v, positions, cos_sin, target, norms=norms, eps=1e-6)

    assert torch.equal(copies[0], q)
    assert torch.equal(alone, together)


def test_heads_that_share_no_kv_head_evenly_still_turn(ops):
    q, k, _ = projection(3, 5, 2, 32, torch.float32)
    positions, cos_sin = torch.tensor([3, 0, 39]), table(32, 32, torch.float32)
    expected = apply_rotary_reference(q.clone(), k.clone(), positions, cos_sin)

    turned = ops.apply_rotary(q, k, positions, cos_sin)

    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)
