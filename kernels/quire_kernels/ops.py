"""The set of operations of one backend. A model is built with one and calls nothing else of this package's ops.

    ops = load_ops("cpu")
    hidden, residual = ops.rms_norm(hidden, weight, eps, residual)

Each field's contract is the table at the top of the module that defines its reference. All backends are interchangeable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol, overload

from torch import Tensor

from quire_kernels import (
    copy_blocks,
    logprobs,
    paged_attention,
    penalties,
    rms_norm,
    rotary,
    sampling,
    silu_mul,
    store_kv,
    token_bias,
)
from quire_kernels.cpu import logprobs as cpu_logprobs
from quire_kernels.cpu import paged_attention as cpu_paged_attention
from quire_kernels.cpu import rms_norm as cpu_rms_norm
from quire_kernels.cpu import rotary as cpu_rotary
from quire_kernels.cpu import sampling as cpu_sampling
from quire_kernels.logprobs import TopLogprobs
from quire_kernels.sampling import SamplingTensors

OpsName = Literal["reference", "cpu", "triton"]


class PagedAttention(Protocol):
    """See quire_kernels.paged_attention."""

    def __call__(
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
    ) -> Tensor: ...


class PlanAttention(Protocol):
    """See quire_kernels.paged_attention."""

    def __call__(
        self, k_cache: Tensor, block_tables: Tensor, query_starts: Tensor, seq_lens: Tensor, *, window: int | None
    ) -> object: ...


class RmsNorm(Protocol):
    """See quire_kernels.rms_norm."""

    @overload
    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
    @overload
    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...


class Sample(Protocol):
    """See quire_kernels.sampling."""

    def __call__(self, logits_RV: Tensor, params: SamplingTensors, purpose: int = 0) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Ops:
    """One backend's operations."""

    name: OpsName
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    """(k, v, k_cache, v_cache, slots)"""
    copy_blocks: Callable[[Tensor, Tensor], None]
    """(kv_cache, pairs)"""
    plan_attention: PlanAttention
    paged_attention: PagedAttention
    rms_norm: RmsNorm
    apply_rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(q, k, positions, cos_sin) -> (q, k)"""
    silu_mul: Callable[[Tensor], Tensor]
    """(gate_up) -> out"""
    sample: Sample
    apply_penalties: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    """(logits, slots, prompt_mask, output_counts, repetition, frequency, presence)"""
    count_tokens: Callable[[Tensor, Tensor, Tensor], None]
    """(output_counts, slots, token_ids)"""
    apply_bias: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """(logits, row_idx, ids, values)"""
    apply_bitmask: Callable[[Tensor, Tensor, Tensor], None]
    """(logits, rows, bitmask)"""
    top_logprobs: Callable[[Tensor, Tensor, int], TopLogprobs]
    """(logits, chosen, k)"""


def load_ops(name: OpsName) -> Ops:
    """The named backend. Raises ValueError for an unknown name, ModuleNotFoundError when Triton is asked for and missing."""
    match name:
        case "reference":
            return _reference_ops()
        case "cpu":
            return _cpu_ops()
        case "triton":
            return _triton_ops()
        case _:
            raise ValueError(f"ops={name!r} is unknown; choose reference, cpu or triton")


def _reference_ops() -> Ops:
    return Ops(
        name="reference",
        store_kv=store_kv.store_kv_reference,
        copy_blocks=copy_blocks.copy_blocks_reference,
        plan_attention=paged_attention.plan_attention_reference,
        paged_attention=paged_attention.paged_attention_reference,
        rms_norm=rms_norm.rms_norm_reference,
        apply_rotary=rotary.apply_rotary_reference,
        silu_mul=silu_mul.silu_mul_reference,
        sample=sampling.sample_reference,
        apply_penalties=penalties.apply_penalties_reference,
        count_tokens=penalties.count_tokens_reference,
        apply_bias=token_bias.apply_bias_reference,
        apply_bitmask=token_bias.apply_bitmask_reference,
        top_logprobs=logprobs.top_logprobs_reference,
    )


def _cpu_ops() -> Ops:
    return Ops(
        name="cpu",
        store_kv=store_kv.store_kv_cpu,
        copy_blocks=copy_blocks.copy_blocks_reference,
        plan_attention=cpu_paged_attention.plan_attention_cpu,
        paged_attention=cpu_paged_attention.paged_attention_cpu,
        rms_norm=cpu_rms_norm.rms_norm_cpu,
        apply_rotary=cpu_rotary.apply_rotary_cpu,
        silu_mul=silu_mul.silu_mul_reference,
        sample=cpu_sampling.sample_cpu,
        apply_penalties=penalties.apply_penalties_reference,
        count_tokens=penalties.count_tokens_reference,
        apply_bias=token_bias.apply_bias_reference,
        apply_bitmask=token_bias.apply_bitmask_reference,
        top_logprobs=cpu_logprobs.top_logprobs_cpu,
    )


def _triton_ops() -> Ops:
    if find_spec("triton") is None:
        raise ModuleNotFoundError(
            "ops='triton' needs the triton package: pip install 'quire[gpu]', or choose ops='cpu'"
        )
    from quire_kernels.gpu import copy_blocks as gpu_copy_blocks
    from quire_kernels.gpu import logprobs as gpu_logprobs
    from quire_kernels.gpu import paged_attention as gpu_paged_attention
    from quire_kernels.gpu import penalties as gpu_penalties
    from quire_kernels.gpu import rms_norm as gpu_rms_norm
    from quire_kernels.gpu import rotary as gpu_rotary
    from quire_kernels.gpu import sampling as gpu_sampling
    from quire_kernels.gpu import silu_mul as gpu_silu_mul
    from quire_kernels.gpu import store_kv as gpu_store_kv
    from quire_kernels.gpu import token_bias as gpu_token_bias

    return Ops(
        name="triton",
        store_kv=gpu_store_kv.store_kv_triton,
        copy_blocks=gpu_copy_blocks.copy_blocks_triton,
        plan_attention=paged_attention.plan_attention_reference,
        paged_attention=gpu_paged_attention.paged_attention_triton,
        rms_norm=gpu_rms_norm.rms_norm_triton,
        apply_rotary=gpu_rotary.apply_rotary_triton,
        silu_mul=gpu_silu_mul.silu_mul_triton,
        sample=gpu_sampling.sample_triton,
        apply_penalties=gpu_penalties.apply_penalties_triton,
        count_tokens=gpu_penalties.count_tokens_triton,
        apply_bias=gpu_token_bias.apply_bias_triton,
        apply_bitmask=gpu_token_bias.apply_bitmask_triton,
        top_logprobs=gpu_logprobs.top_logprobs_triton,
    )
