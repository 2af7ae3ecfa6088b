"""Norms of heads, rotary embedding and KV writes in C++, into a cache in the native order. See `native/rotary_store.h`.

Contracts are those of quire_kernels.{rotary,store_kv,rotate_and_store}, but for the order inside a run of the cache. Queries and keys
are turned where they lie.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from quire_kernels.cpu.native_kv_order import has_contiguous_runs
from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.cpu.rotary import apply_rotary_cpu
from quire_kernels.cpu.rotate_and_store import rotate_and_store_cpu
from quire_kernels.rotate_and_store import CacheTarget

_P, _I = ctypes.c_void_p, ctypes.c_int64


class _RotateStoreArgs(ctypes.Structure):
    """quire::RotateStoreArgs, field by field."""

    _fields_ = (
        ("q", _P), ("k", _P), ("v", _P),
        ("q_token_stride", _I), ("q_head_stride", _I), ("k_token_stride", _I), ("k_head_stride", _I),
        ("v_token_stride", _I), ("v_head_stride", _I),
        ("num_tokens", _I), ("num_heads", _I), ("num_kv_heads", _I), ("head_dim", _I),
        ("positions", _P), ("cos_sin", _P), ("rotary_dim", _I), ("table_is_float", _I),
        ("q_norm", _P), ("k_norm", _P), ("eps", ctypes.c_float),
        ("k_cache", _P), ("v_cache", _P), ("block_stride", _I), ("block_size", _I), ("slots", _P),
    )  # fmt: skip


class NativeRotary:
    """The ops of one library. One thread at a time may call."""

    def __init__(self, library: NativeLibrary) -> None:
        pointer = ctypes.POINTER(_RotateStoreArgs)
        self._run: dict[torch.dtype, Any] = {
            torch.float32: library.function("quire_rotate_and_store_f32", (pointer,), None),
            torch.bfloat16: library.function("quire_rotate_and_store_bf16", (pointer,), None),
        }

    def rotate_and_store(
        self,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        target: CacheTarget,
        *,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """q itself, normalised and rotated; k as it was."""
        if target.kv_scales is not None:  # a cache of float8, which is never in the native order
            return rotate_and_store_cpu(q_THD, k_THD, v_THD, positions, cos_sin, target, norms=norms, eps=eps)
        args = _RotateStoreArgs(num_tokens=q_THD.shape[0], eps=eps)
        _set_queries_and_keys(args, q_THD, k_THD)
        kept = _set_table(args, positions, cos_sin, q_THD.dtype)
        _set_target(args, v_THD, target.k_cache, target.v_cache, target.slots)
        if norms is not None:
            assert all(norm.dtype == q_THD.dtype and norm.is_contiguous() for norm in norms)
            args.q_norm, args.k_norm = (norm.data_ptr() for norm in norms)
        self._run[q_THD.dtype](args)
        del kept
        return q_THD

    def apply_rotary(self, q_THD: Tensor, k_THD: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
        """q and k themselves, turned."""
        if q_THD.shape[1] % k_THD.shape[1]:
            return apply_rotary_cpu(q_THD, k_THD, positions, cos_sin)
        args = _RotateStoreArgs(num_tokens=q_THD.shape[0])
        _set_queries_and_keys(args, q_THD, k_THD)
        kept = _set_table(args, positions, cos_sin, q_THD.dtype)
        self._run[q_THD.dtype](args)
        del kept
        return q_THD, k_THD

    def store_kv(self, k_THD: Tensor, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        """Any padding (slot -1) is skipped."""
        num_tokens, num_kv_heads, head_dim = k_THD.shape
        args = _RotateStoreArgs(num_tokens=num_tokens, num_kv_heads=num_kv_heads, head_dim=head_dim)
        assert k_THD.stride(2) == 1
        args.k, args.k_token_stride, args.k_head_stride = k_THD.data_ptr(), k_THD.stride(0), k_THD.stride(1)
        _set_target(args, v_THD, k_cache, v_cache, slots)
        assert k_THD.dtype == k_cache.dtype
        self._run[k_THD.dtype](args)


def _set_queries_and_keys(args: _RotateStoreArgs, q_THD: Tensor, k_THD: Tensor) -> None:
    assert q_THD.dtype == k_THD.dtype and q_THD.stride(2) == k_THD.stride(2) == 1
    args.q, args.k = q_THD.data_ptr(), k_THD.data_ptr()
    args.q_token_stride, args.q_head_stride, _ = q_THD.stride()
    args.k_token_stride, args.k_head_stride, _ = k_THD.stride()
    _, args.num_heads, args.head_dim = q_THD.shape
    args.num_kv_heads = k_THD.shape[1]
    assert args.num_heads % args.num_kv_heads == 0 and args.head_dim % 16 == 0


def _set_table(args: _RotateStoreArgs, positions: Tensor, cos_sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The tensors that `args` then points into."""
    positions = positions.contiguous()
    if cos_sin.dtype not in (torch.float32, dtype) or not cos_sin.is_contiguous():
        cos_sin = cos_sin.to(dtype).contiguous()
    assert positions.dtype == torch.int64
    args.positions, args.cos_sin = positions.data_ptr(), cos_sin.data_ptr()
    args.rotary_dim, args.table_is_float = cos_sin.shape[1], cos_sin.dtype == torch.float32
    return positions, cos_sin


def _set_target(args: _RotateStoreArgs, v_THD: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    assert k_cache.stride(0) == v_cache.stride(0) and v_THD.dtype == k_cache.dtype == v_cache.dtype
    assert has_contiguous_runs(k_cache) and has_contiguous_runs(v_cache), "a block's heads must be contiguous runs"
    assert slots.dtype == torch.int64 and slots.is_contiguous() and v_THD.stride(2) == 1
    args.v, args.v_token_stride, args.v_head_stride = v_THD.data_ptr(), v_THD.stride(0), v_THD.stride(1)
    args.k_cache, args.v_cache, args.slots = k_cache.data_ptr(), v_cache.data_ptr(), slots.data_ptr()
    args.block_stride, args.block_size = k_cache.stride(0), k_cache.shape[2]
