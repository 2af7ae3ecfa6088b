"""Paged attention in C++, over a cache in the native order. `native/attention.h` draws the order and says what fixes a query's bits.

The contract is that of quire_kernels.paged_attention but for the order inside a run of the cache, which `native_kv_order` converts;
queries may be strided over T and H. A plan is cut on its first use, once the number of query heads is known, and serves every layer.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire_kernels.cpu.native_kv_order import has_contiguous_runs
from quire_kernels.cpu.native_library import NativeLibrary

MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.bfloat16)

_P, _I = ctypes.c_void_p, ctypes.c_int64


class _AttentionArgs(ctypes.Structure):
    """quire::AttentionArgs, field by field."""

    _fields_ = (
        ("q", _P), ("q_token_stride", _I), ("q_head_stride", _I),
        ("k_cache", _P), ("v_cache", _P), ("block_stride", _I),
        ("block_tables", _P), ("table_stride", _I), ("query_starts", _P), ("seq_lens", _P),
        ("num_rows", _I), ("num_heads", _I), ("num_kv_heads", _I), ("head_dim", _I), ("block_size", _I),
        ("scale", ctypes.c_float), ("window", _I), ("out", _P), ("plan", _P), ("scratch", _P),
    )  # fmt: skip


@dataclass(kw_only=True)
class NativePlan:
    """One step's rows, cut into work. The tensors are kept because `args` points into them."""

    args: _AttentionArgs
    tensors: tuple[Tensor, ...]
    memory: Tensor | None = None
    """None until the first use."""


def fits_native_attention(dtype: torch.dtype, head_dim: int, block_size: int) -> bool:
    """Whether the C++ ops can serve a cache of these; others use torch."""
    return dtype in DTYPES and head_dim % 16 == 0 and 0 < head_dim <= MAX_HEAD_DIM and block_size % 16 == 0


class NativeAttention:
    """The ops of one library. One thread at a time may call."""

    def __init__(self, library: NativeLibrary) -> None:
        call, pointer = library.function, ctypes.POINTER(_AttentionArgs)
        self._plan_bytes = call("quire_attention_plan_bytes", (_I, _I, _I, _I), _I)
        self._scratch_bytes = call("quire_attention_scratch_bytes", (_I,), _I)
        self._plan = call("quire_plan_attention", (pointer, _P), None)
        self._attend: dict[torch.dtype, Any] = {
            torch.float32: call("quire_attend_f32", (pointer,), None),
            torch.bfloat16: call("quire_attend_bf16", (pointer,), None),
        }
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def plan_attention(
        self, k_cache: Tensor, block_tables: Tensor, query_starts: Tensor, seq_lens: Tensor, *, window: int | None
    ) -> NativePlan:
        """Any layer's k_cache serves, for its shape."""
        _, num_kv_heads, block_size, head_dim = k_cache.shape
        assert fits_native_attention(k_cache.dtype, head_dim, block_size), "such a cache is served by torch"
        assert has_contiguous_runs(k_cache), "a block's heads must be contiguous runs"
        assert block_tables.dtype == query_starts.dtype == seq_lens.dtype == torch.int32
        assert block_tables.stride(1) == 1 and query_starts.is_contiguous() and seq_lens.is_contiguous()
        assert query_starts.shape[0] == block_tables.shape[0] + 1 == seq_lens.shape[0] + 1
        args = _AttentionArgs(
            block_stride=k_cache.stride(0),
            block_tables=block_tables.data_ptr(),
            table_stride=block_tables.stride(0),
            query_starts=query_starts.data_ptr(),
            seq_lens=seq_lens.data_ptr(),
            num_rows=seq_lens.shape[0],
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            window=-1 if window is None else window,
        )
        return NativePlan(args=args, tensors=(block_tables, query_starts, seq_lens))

    def paged_attention(
        self,
        q_THD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        seq_lens: Tensor,
        *,
        scale: float,
        window: int | None,
        max_query_len: int,
        max_seq_len: int,
        plan: object = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`plan` comes from `plan_attention` with the same tensors and window."""
        if plan is None:
            plan = self.plan_attention(k_cache, block_tables, query_starts, seq_lens, window=window)
        assert isinstance(plan, NativePlan)
        out = torch.empty(q_THD.shape, dtype=q_THD.dtype) if out is None else out
        assert q_THD.dtype == k_cache.dtype == v_cache.dtype == out.dtype and q_THD.stride(2) == 1
        assert k_cache.stride(0) == v_cache.stride(0) and out.is_contiguous() and out.shape == q_THD.shape
        args = plan.args
        args.q, args.k_cache, args.v_cache, args.out = (t.data_ptr() for t in (q_THD, k_cache, v_cache, out))
        args.q_token_stride, args.q_head_stride, _ = q_THD.stride()
        args.scale, args.block_stride = scale, k_cache.stride(0)
        if plan.memory is None or args.num_heads != q_THD.shape[1]:
            self._cut(plan, q_THD)
        self._attend[q_THD.dtype](args)
        return out

    def _cut(self, plan: NativePlan, q_THD: Tensor) -> None:
        args, (num_tokens, num_heads, head_dim) = plan.args, q_THD.shape
        assert head_dim == args.head_dim and num_heads % args.num_kv_heads == 0
        args.num_heads = num_heads
        plan.memory = _aligned(self._plan_bytes(args.num_rows, num_tokens, num_heads, args.num_kv_heads))
        scratch_bytes = self._scratch_bytes(head_dim)
        if self._scratch.numel() < scratch_bytes:
            self._scratch = _aligned(scratch_bytes)
        args.plan, args.scratch = plan.memory.data_ptr(), self._scratch.data_ptr()
        self._plan(args, args.plan)


def _aligned(size_bytes: int) -> Tensor:
    memory = torch.empty(size_bytes + 63, dtype=torch.uint8)
    return memory[-memory.data_ptr() % 64 :]
