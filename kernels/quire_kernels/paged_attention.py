"""Causal attention of this step's queries over the paged cache.

    q                 [T, H, D]      T tokens of R rows (requests), row after row; any stride over T, H and D contiguous
    k_cache, v_cache  [N, Hkv, B, D] a layer's view of the cache: strides (any, B*D, D, 1); B a multiple of 16; Hkv divides H
    block_tables      [R, M] int32   the row's blocks in order of position
    query_starts      [R + 1] int32  cumulative: the queries of row r are query_starts[r] .. query_starts[r + 1] - 1
    seq_lens          [R] int32      context length, this step's tokens included; their keys and values are stored already
    scale             float          times q . k
    window            int | None     position i attends j with i - window < j <= i; None: all j <= i
    max_query_len     int            largest row's number of queries; 1 makes it a decode step
    max_seq_len       int            at least the largest seq_len
    plan              opaque         what `plan_attention` made of the same tables, or None
    out               [T, H, D]      contiguous, q's dtype; made when None

                 0            seq_len - query_len        seq_len
    positions    |---- in the cache before ----|---- queries ----|

Queries of a row are its last positions. Head h reads kv head h // (H / Hkv). A row with no query, or with seq_len 0 (padding of a
captured graph), reads nothing; the output of padding is unspecified. Table entries of blocks wholly before the window or beyond seq_len
may be anything: they are not used. Slots beyond seq_len inside a row's last block may hold stale numbers.

`plan_attention(k_cache, block_tables, query_starts, seq_lens, window=...)` does, once a step, what is the same for every layer of one
window: pass its result to each layer's call. It is optional, and None where a backend has no use for it.

`paged_attention_fp8` reads caches of float8_e4m3fn and their scales (see store_kv):

    kv_scales         [2, Hkv] float32   of keys, of values: what is meant is the cached number times its head's
"""

import torch
from torch import Tensor


def paged_attention_reference(
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
    """Row by row in float32, the scores whole."""
    out = torch.zeros_like(q_THD, memory_format=torch.contiguous_format) if out is None else out
    bounds = query_starts.tolist()
    for row, seq_len in enumerate(seq_lens.tolist()):
        start, end = bounds[row], bounds[row + 1]
        if start < end and seq_len:
            positions = torch.arange(seq_len - (end - start), seq_len)
            first = 0 if window is None else max(0, seq_len - (end - start) - window + 1)
            keys = torch.arange(first, seq_len)
            blocks = block_tables[row].cpu()[keys // k_cache.shape[2]].long()
            k_SHD = k_cache[blocks, :, keys % k_cache.shape[2]].float()
            v_SHD = v_cache[blocks, :, keys % k_cache.shape[2]].float()
            out[start:end] = _attend(q_THD[start:end].float(), k_SHD, v_SHD, _visible(positions, keys, window), scale)
    return out


def paged_attention_fp8_reference(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    *,
    kv_scales: Tensor,
    scale: float,
    window: int | None,
    max_query_len: int,
    max_seq_len: int,
    plan: object = None,
    out: Tensor | None = None,
) -> Tensor:
    """Over the whole caches in float32."""
    k_scale, v_scale = kv_scales[:, None, :, None, None]
    return paged_attention_reference(
        q_THD,
        k_cache.float() * k_scale,
        v_cache.float() * v_scale,
        block_tables,
        query_starts,
        seq_lens,
        scale=scale,
        window=window,
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
        out=out,
    )


def plan_attention_reference(
    k_cache: Tensor, block_tables: Tensor, query_starts: Tensor, seq_lens: Tensor, *, window: int | None
) -> None:
    """Nothing is worth preparing."""


def _visible(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    distance = positions[:, None] - keys
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _attend(q_QHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, visible_QS: Tensor, scale: float) -> Tensor:
    group_size = q_QHD.shape[1] // k_SHD.shape[1]
    k_SHD, v_SHD = k_SHD.repeat_interleave(group_size, 1), v_SHD.repeat_interleave(group_size, 1)
    scores = torch.einsum("qhd,shd->hqs", q_QHD, k_SHD) * scale
    weights = scores.masked_fill(~visible_QS.to(scores.device), float("-inf")).softmax(-1)
    return torch.einsum("hqs,shd->qhd", weights, v_SHD)
