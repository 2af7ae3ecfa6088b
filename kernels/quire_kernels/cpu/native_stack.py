"""A whole dense decoder as one call: from token ids to logits, with no Python between layers. See native/stack.h for the road.

    stack = NativeStack(library, shape, weights, layers)       once, when the weights are loaded
    stack.bind_kv_cache(k_caches, v_caches)                    whenever the cache changes
    logits = stack.run(token_ids, positions, ...)              once a step

The structures repeat those of native/stack.h, field by field.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.cpu.linear import NativeWeight
from quire_kernels.cpu.native_library import NativeLibrary


class _LayerArgs(Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", c_void_p),
        ("out", c_void_p),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("k_cache", c_void_p),
        ("v_cache", c_void_p),
        ("group", c_int64),
    )


class _StackArgs(Structure):
    _fields_ = (
        ("layers", c_void_p),
        ("num_layers", c_int64),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("head", c_void_p),
        ("hidden_size", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("rotary_dim", c_int64),
        ("cos_sin", c_void_p),
        ("block_stride", c_int64),
        ("block_size", c_int64),
        ("eps", c_float),
        ("scale", c_float),
    )


class _GroupArgs(Structure):
    _fields_ = (
        ("block_tables", c_void_p),
        ("table_stride", c_int64),
        ("sampled_tables", c_void_p),
        ("sampled_table_stride", c_int64),
        ("slots", c_void_p),
        ("window", c_int64),
    )


class _StepArgs(Structure):
    _fields_ = (
        ("num_tokens", c_int64),
        ("num_rows", c_int64),
        ("num_sampled", c_int64),
        ("num_groups", c_int64),
        ("groups", c_void_p),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("query_starts", c_void_p),
        ("seq_lens", c_void_p),
        ("sampled_tokens", c_void_p),
        ("sampled_starts", c_void_p),
        ("sampled_lens", c_void_p),
        ("logits", c_void_p),
        ("workspace", c_void_p),
        ("num_sampled_rows", c_int64),
        ("hidden", c_void_p),
    )


@dataclass(frozen=True, kw_only=True)
class StackLayer:
    """One dense layer's weights."""

    input_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    qkv: NativeWeight
    out: NativeWeight
    gate_up: NativeWeight
    """Packed as gate and up."""
    down: NativeWeight
    group: int
    """KV group."""


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """What the weights do not say."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    scale: float
    windows: tuple[int | None, ...]
    """By KV group."""


@dataclass(frozen=True, kw_only=True)
class StackQueries:
    """Queries of R rows. See quire_kernels.paged_attention for the tensors."""

    block_tables: tuple[Tensor, ...]
    """By KV group, [R, M] int32."""
    query_starts: Tensor
    seq_lens: Tensor


class NativeStack:
    """Dense layers between an embedding and an output head, on weights of one dtype: float32 or bfloat16."""

    def __init__(
        self,
        library: NativeLibrary,
        shape: StackShape,
        layers: Sequence[StackLayer],
        *,
        embedding: Tensor,
        final_norm: Tensor,
        head: NativeWeight,
        cos_sin: Tensor,
    ) -> None:
        """embedding [V, E], final_norm [E], cos_sin [P, rotary dim]: contiguous and of one dtype, like the layers' norms."""
        norms = [
            n
            for layer in layers
            for n in (layer.input_norm, layer.mlp_norm, layer.q_norm, layer.k_norm)
            if n is not None
        ]
        tensors = (embedding, final_norm, cos_sin, *norms)
        assert all(t.dtype == embedding.dtype and t.is_contiguous() for t in tensors)
        # The library reads all of this by address.
        self._kept = (tensors, layers, head)
        self._windows = shape.windows
        self._vocab_size = head.num_outputs
        self._hidden_size = embedding.shape[1]
        self._dtype = embedding.dtype
        self._is_float = int(embedding.dtype == torch.float32)
        self._layers = (_LayerArgs * len(layers))(*[_layer_args(layer) for layer in layers])
        self._args = _StackArgs(
            layers=ctypes.addressof(self._layers),
            num_layers=len(layers),
            embedding=embedding.data_ptr(),
            final_norm=final_norm.data_ptr(),
            head=ctypes.addressof(head.packed),
            hidden_size=embedding.shape[1],
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            rotary_dim=cos_sin.shape[1],
            cos_sin=cos_sin.data_ptr(),
            eps=shape.eps,
            scale=shape.scale,
        )
        signature = (POINTER(_StackArgs), POINTER(_StepArgs), c_int)
        self._workspace_bytes = library.function("quire_stack_workspace_bytes", signature, c_int64)
        self._run = library.function("quire_run_stack", signature, None)
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._one_to_n = torch.zeros(1, dtype=torch.int32)

    def bind_kv_cache(self, k_caches: Sequence[Tensor], v_caches: Sequence[Tensor]) -> None:
        """By layer, [N, K, B, D] views whose blocks are equally far apart; in the order of docs/adr/0007."""
        for layer, k_cache, v_cache in zip(self._layers, k_caches, v_caches, strict=True):
            layer.k_cache, layer.v_cache = k_cache.data_ptr(), v_cache.data_ptr()
        self._caches = (k_caches, v_caches)
        self._args.block_stride = k_caches[0].stride(0)
        self._args.block_size = k_caches[0].shape[2]

    def run(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Sequence[Tensor],
        queries: StackQueries,
        sampled_tokens: Tensor | None,
        sampled_queries: StackQueries,
        num_sampled: int,
        *,
        gives_hidden: bool = False,
    ) -> Tensor | None:
        """Logits [S, V] float32 of the sampled tokens, None when S is 0. Stores keys and values of all T tokens.

        token_ids [T] int32, positions [T] int64, slots by group [T] int64; sampled_tokens [S] int64, None when every token is one:
        `sampled_queries` is then not read. gives_hidden: in place of logits what the head reads, [S, E] in the weights' dtype.
        """
        groups = self._groups(slots, queries, sampled_queries)
        shape = (num_sampled, self._hidden_size) if gives_hidden else (num_sampled, self._vocab_size)
        out = torch.empty(shape, dtype=self._dtype if gives_hidden else torch.float32) if num_sampled else None
        address = None if out is None else out.data_ptr()
        step = _StepArgs(
            num_tokens=token_ids.shape[0],
            num_rows=queries.seq_lens.shape[0],
            num_sampled=num_sampled,
            num_groups=len(groups),
            groups=ctypes.addressof(groups),
            token_ids=token_ids.data_ptr(),
            positions=positions.data_ptr(),
            query_starts=queries.query_starts.data_ptr(),
            seq_lens=queries.seq_lens.data_ptr(),
            logits=None if gives_hidden else address,
            hidden=address if gives_hidden else None,
        )
        if sampled_tokens is not None:
            step.num_sampled_rows = sampled_queries.seq_lens.shape[0]
            step.sampled_tokens = sampled_tokens.data_ptr()
            step.sampled_starts = sampled_queries.query_starts.data_ptr()
            step.sampled_lens = sampled_queries.seq_lens.data_ptr()
        step.workspace = self._space(self._workspace_bytes(byref(self._args), byref(step), self._is_float))
        self._run(byref(self._args), byref(step), self._is_float)
        return out

    def _groups(
        self, slots: Sequence[Tensor], queries: StackQueries, sampled: StackQueries
    ) -> "ctypes.Array[_GroupArgs]":
        groups = [
            _GroupArgs(
                block_tables=table.data_ptr(),
                table_stride=table.stride(0),
                sampled_tables=sampled_table.data_ptr(),
                sampled_table_stride=sampled_table.stride(0),
                slots=group_slots.data_ptr(),
                window=-1 if window is None else window,
            )
            for table, sampled_table, group_slots, window in zip(
                queries.block_tables, sampled.block_tables, slots, self._windows, strict=True
            )
        ]
        return (_GroupArgs * len(groups))(*groups)

    def _space(self, size_bytes: int) -> int:
        """Address of the workspace, made larger when a step needs more."""
        if self._workspace.numel() < size_bytes + _ALIGNMENT:
            self._workspace = torch.empty(0, dtype=torch.uint8)
            self._workspace = torch.empty(size_bytes + _ALIGNMENT, dtype=torch.uint8)
        return -(-self._workspace.data_ptr() // _ALIGNMENT) * _ALIGNMENT


_ALIGNMENT = 64


def _layer_args(layer: StackLayer) -> _LayerArgs:
    return _LayerArgs(
        input_norm=layer.input_norm.data_ptr(),
        mlp_norm=layer.mlp_norm.data_ptr(),
        q_norm=None if layer.q_norm is None else layer.q_norm.data_ptr(),
        k_norm=None if layer.k_norm is None else layer.k_norm.data_ptr(),
        qkv=ctypes.addressof(layer.qkv.packed),
        out=ctypes.addressof(layer.out.packed),
        gate_up=ctypes.addressof(layer.gate_up.packed),
        down=ctypes.addressof(layer.down.packed),
        group=layer.group,
    )
