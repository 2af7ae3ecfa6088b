"""What attention does with a fused projection before it attends: norms of heads, rotary embedding, and writing keys and values.

    q                 [T, H, D]         slices of one projection, or tensors with the same stride over T; H and D contiguous
    k, v              [T, Hkv, D]
    norms             (q [D], k [D])    weights of the norms per head, in q's dtype; None where the model has none
    eps               float             of those norms
    positions         [T] int64
    cos_sin           [P, R]            see rotary
    k_cache, v_cache  [N, Hkv, B, D]    see store_kv; strides (any, B*D, D, 1)
    slots             [T] int64         see store_kv
    kv_scales         [2, Hkv] float32  for caches of float8_e4m3fn, else None

    returns           [T, H, D]         queries, normalised and rotated; a new tensor or q itself

The composition of rms_norm, apply_rotary and store_kv, with their rounding. k and v are consumed.
"""

from dataclasses import dataclass

from torch import Tensor

from quire_kernels.rms_norm import rms_norm_reference
from quire_kernels.rotary import apply_rotary_reference
from quire_kernels.store_kv import store_kv_fp8_reference, store_kv_reference


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheTarget:
    """Where keys and values go. See the module's table."""

    k_cache: Tensor
    v_cache: Tensor
    slots: Tensor
    kv_scales: Tensor | None = None


def rotate_and_store_reference(
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
    """The three operations, one after the other."""
    if norms is not None:
        q_THD, k_THD = rms_norm_reference(q_THD, norms[0], eps), rms_norm_reference(k_THD, norms[1], eps)
    q_THD, k_THD = apply_rotary_reference(q_THD, k_THD, positions, cos_sin)
    if target.kv_scales is None:
        store_kv_reference(k_THD, v_THD, target.k_cache, target.v_cache, target.slots)
    else:
        store_kv_fp8_reference(k_THD, v_THD, target.k_cache, target.v_cache, target.slots, target.kv_scales)
    return q_THD
