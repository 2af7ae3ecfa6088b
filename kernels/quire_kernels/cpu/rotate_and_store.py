"""rotate_and_store on a CPU: the fast paths of its parts. See quire_kernels.rotate_and_store for the table."""

from torch import Tensor

from quire_kernels.cpu.rms_norm import rms_norm_cpu
from quire_kernels.cpu.rotary import apply_rotary_cpu
from quire_kernels.rotate_and_store import CacheTarget
from quire_kernels.store_kv import store_kv_cpu, store_kv_fp8_reference


def rotate_and_store_cpu(
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
    """One operation after the other."""
    if norms is not None:
        q_THD, k_THD = rms_norm_cpu(q_THD, norms[0], eps), rms_norm_cpu(k_THD, norms[1], eps)
    q_THD, k_THD = apply_rotary_cpu(q_THD, k_THD, positions, cos_sin)
    if target.kv_scales is None:
        store_kv_cpu(k_THD, v_THD, target.k_cache, target.v_cache, target.slots)
    else:
        store_kv_fp8_reference(k_THD, v_THD, target.k_cache, target.v_cache, target.slots, target.kv_scales)
    return q_THD
