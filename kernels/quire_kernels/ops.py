"""The set of operations of one backend. A model is built with one and calls nothing else of this package's ops.

    ops = load_ops("cpu")
    hidden, residual = ops.rms_norm(hidden, weight, eps, residual)

Each field's contract is the table at the top of the module that defines its reference. All backends are interchangeable.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Literal

from torch import Tensor

from quire_kernels import (
    append_tokens,
    copy_blocks,
    linear,
    logprobs,
    matmul_fp8,
    moe,
    moe_fp8,
    paged_attention,
    penalties,
    prepare_inputs,
    quantize_fp8,
    rms_norm,
    rotary,
    rotate_and_store,
    sampling,
    silu_mul,
    store_kv,
    token_bias,
)
from quire_kernels.cpu import logprobs as cpu_logprobs
from quire_kernels.cpu import paged_attention as cpu_paged_attention
from quire_kernels.cpu import rms_norm as cpu_rms_norm
from quire_kernels.cpu import rotary as cpu_rotary
from quire_kernels.cpu import rotate_and_store as cpu_rotate_and_store
from quire_kernels.cpu import sampling as cpu_sampling
from quire_kernels.cpu.native_attention import NativeAttention
from quire_kernels.cpu.native_elementwise import NativeElementwise
from quire_kernels.cpu.native_library import native_library
from quire_kernels.cpu.native_rotary import NativeRotary
from quire_kernels.cpu.native_sampling import NativeSampling
from quire_kernels.logprobs import TopLogprobs
from quire_kernels.moe_fp8 import Fp8Experts
from quire_kernels.signatures import (
    Argmax,
    Linear,
    MatmulFp8,
    PagedAttention,
    PagedAttentionFp8,
    PlanAttention,
    PrepareInputs,
    QuantizeFp8,
    RmsNorm,
    RmsNormFp8,
    RotateAndStore,
    Sample,
)

OpsName = Literal["reference", "cpu", "cpu-torch", "triton"]


@dataclass(frozen=True, kw_only=True)
class Ops:
    """One backend's operations."""

    name: OpsName
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    """(k, v, k_cache, v_cache, slots)"""
    store_kv_fp8: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
    """(k, v, k_cache, v_cache, slots, kv_scales)"""
    copy_blocks: Callable[[Tensor, Tensor], None]
    """(kv_cache, pairs)"""
    plan_attention: PlanAttention
    paged_attention: PagedAttention
    paged_attention_fp8: PagedAttentionFp8
    rms_norm: RmsNorm
    apply_rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(q, k, positions, cos_sin) -> (q, k)"""
    rotate_and_store: RotateAndStore
    """rms_norm of heads, apply_rotary and store_kv in one"""
    prepare_inputs: PrepareInputs
    silu_mul: Callable[[Tensor], Tensor]
    """(gate_up) -> out"""
    moe: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None
    """(x, weights, experts, gate_up, down) -> out; None where one layer after the other is faster, as packed weights are on a CPU"""
    moe_fp8: Callable[[Tensor, Tensor, Tensor, Fp8Experts], Tensor] | None
    """(x, weights, experts, stacks) -> out; None where moe is"""
    linear: Linear
    quantize_fp8: QuantizeFp8
    silu_mul_fp8: QuantizeFp8
    rms_norm_fp8: RmsNormFp8
    matmul_fp8: MatmulFp8
    matmul_fp8_blocks: MatmulFp8
    sample: Sample
    argmax: Argmax
    """What sample gives at temperature 0."""
    append_tokens: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """(row_ids, sampled, token_ids, num_tokens)"""
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


def load_ops(name: OpsName, *, batch_invariant: bool = False, native_kv: bool = False) -> Ops:
    """The named backend. Raises ValueError for an unknown name, ModuleNotFoundError when Triton is asked for and missing.

    batch_invariant: a row's results do not depend on the rows beside it, to the bit, at some cost. It is always so on a CPU.
    native_kv: of cpu, if it has its C++ library: keys and values in that library's order, for caches that `fits_native_attention` accepts.
        Without it the cache is in the plain order, and torch attends. cpu-torch is torch throughout.
    """
    match name:
        case "reference":
            return _reference_ops()
        case "cpu":
            return _with_native(_cpu_ops("cpu"), native_kv)
        case "cpu-torch":
            return _cpu_ops("cpu-torch")
        case "triton":
            return _triton_ops(batch_invariant)
        case _:
            raise ValueError(f"ops={name!r} is unknown; choose reference, cpu, cpu-torch or triton")


def _reference_ops() -> Ops:
    return Ops(
        name="reference",
        store_kv=store_kv.store_kv_reference,
        store_kv_fp8=store_kv.store_kv_fp8_reference,
        copy_blocks=copy_blocks.copy_blocks_reference,
        plan_attention=paged_attention.plan_attention_reference,
        paged_attention=paged_attention.paged_attention_reference,
        paged_attention_fp8=paged_attention.paged_attention_fp8_reference,
        rms_norm=rms_norm.rms_norm_reference,
        apply_rotary=rotary.apply_rotary_reference,
        rotate_and_store=rotate_and_store.rotate_and_store_reference,
        prepare_inputs=prepare_inputs.prepare_inputs_reference,
        silu_mul=silu_mul.silu_mul_reference,
        moe=moe.moe_reference,
        moe_fp8=moe_fp8.moe_fp8_reference,
        linear=linear.linear_reference,
        quantize_fp8=quantize_fp8.quantize_fp8_reference,
        silu_mul_fp8=quantize_fp8.silu_mul_fp8_reference,
        rms_norm_fp8=quantize_fp8.rms_norm_fp8_reference,
        matmul_fp8=matmul_fp8.matmul_fp8_reference,
        matmul_fp8_blocks=matmul_fp8.matmul_fp8_blocks_reference,
        sample=sampling.sample_reference,
        argmax=sampling.argmax_reference,
        append_tokens=append_tokens.append_tokens_reference,
        apply_penalties=penalties.apply_penalties_reference,
        count_tokens=penalties.count_tokens_reference,
        apply_bias=token_bias.apply_bias_reference,
        apply_bitmask=token_bias.apply_bitmask_reference,
        top_logprobs=logprobs.top_logprobs_reference,
    )


def _cpu_ops(name: OpsName) -> Ops:
    return Ops(
        name=name,
        store_kv=store_kv.store_kv_cpu,
        store_kv_fp8=store_kv.store_kv_fp8_reference,
        copy_blocks=copy_blocks.copy_blocks_reference,
        plan_attention=cpu_paged_attention.plan_attention_cpu,
        paged_attention=cpu_paged_attention.paged_attention_cpu,
        paged_attention_fp8=paged_attention.paged_attention_fp8_reference,
        rms_norm=cpu_rms_norm.rms_norm_cpu,
        apply_rotary=cpu_rotary.apply_rotary_cpu,
        rotate_and_store=cpu_rotate_and_store.rotate_and_store_cpu,
        prepare_inputs=prepare_inputs.prepare_inputs_reference,
        silu_mul=silu_mul.silu_mul_reference,
        moe=None,
        moe_fp8=None,
        linear=linear.linear_reference,
        quantize_fp8=quantize_fp8.quantize_fp8_reference,
        silu_mul_fp8=quantize_fp8.silu_mul_fp8_reference,
        rms_norm_fp8=quantize_fp8.rms_norm_fp8_reference,
        matmul_fp8=matmul_fp8.matmul_fp8_reference,
        matmul_fp8_blocks=matmul_fp8.matmul_fp8_blocks_reference,
        sample=cpu_sampling.sample_cpu,
        argmax=sampling.argmax_reference,
        append_tokens=append_tokens.append_tokens_reference,
        apply_penalties=penalties.apply_penalties_reference,
        count_tokens=penalties.count_tokens_reference,
        apply_bias=token_bias.apply_bias_reference,
        apply_bitmask=token_bias.apply_bitmask_reference,
        top_logprobs=cpu_logprobs.top_logprobs_cpu,
    )


def _with_native(ops: Ops, native_kv: bool) -> Ops:
    """What there is in C++ in place of torch, if the library can be had."""
    library = native_library()
    if library is None:
        return ops
    if native_kv:
        attention, heads = NativeAttention(library), NativeRotary(library)
        ops = replace(
            ops,
            plan_attention=attention.plan_attention,
            paged_attention=attention.paged_attention,
            apply_rotary=heads.apply_rotary,
            rotate_and_store=heads.rotate_and_store,
            store_kv=heads.store_kv,
        )
    native = NativeSampling(library)
    elementwise = NativeElementwise(library)
    return replace(
        ops,
        rms_norm=elementwise.rms_norm,
        silu_mul=elementwise.silu_mul,
        sample=native.sample,
        argmax=native.argmax,
        apply_penalties=native.apply_penalties,
        count_tokens=native.count_tokens,
        apply_bias=native.apply_bias,
        apply_bitmask=native.apply_bitmask,
        top_logprobs=native.top_logprobs,
    )


def _triton_ops(batch_invariant: bool) -> Ops:
    if find_spec("triton") is None:
        raise ModuleNotFoundError(
            "ops='triton' needs the triton package: pip install 'quire[gpu]', or choose ops='cpu'"
        )
    from quire_kernels.gpu import append_tokens as gpu_append_tokens
    from quire_kernels.gpu import copy_blocks as gpu_copy_blocks
    from quire_kernels.gpu import invariant_matmul
    from quire_kernels.gpu import logprobs as gpu_logprobs
    from quire_kernels.gpu import matmul_fp8 as gpu_matmul_fp8
    from quire_kernels.gpu import moe as gpu_moe
    from quire_kernels.gpu import moe_fp8 as gpu_moe_fp8
    from quire_kernels.gpu import paged_attention as gpu_paged_attention
    from quire_kernels.gpu import penalties as gpu_penalties
    from quire_kernels.gpu import prepare_inputs as gpu_prepare_inputs
    from quire_kernels.gpu import quantize_fp8 as gpu_quantize_fp8
    from quire_kernels.gpu import rms_norm as gpu_rms_norm
    from quire_kernels.gpu import rotary as gpu_rotary
    from quire_kernels.gpu import rotate_and_store as gpu_rotate_and_store
    from quire_kernels.gpu import sampling as gpu_sampling
    from quire_kernels.gpu import silu_mul as gpu_silu_mul
    from quire_kernels.gpu import store_kv as gpu_store_kv
    from quire_kernels.gpu import token_bias as gpu_token_bias

    ops = Ops(
        name="triton",
        store_kv=gpu_store_kv.store_kv_triton,
        store_kv_fp8=gpu_store_kv.store_kv_triton,
        copy_blocks=gpu_copy_blocks.copy_blocks_triton,
        plan_attention=partial(gpu_paged_attention.plan_attention_triton, batch_invariant=batch_invariant),
        paged_attention=partial(gpu_paged_attention.paged_attention_triton, batch_invariant=batch_invariant),
        paged_attention_fp8=partial(gpu_paged_attention.paged_attention_triton, batch_invariant=batch_invariant),
        rms_norm=gpu_rms_norm.rms_norm_triton,
        apply_rotary=gpu_rotary.apply_rotary_triton,
        rotate_and_store=gpu_rotate_and_store.rotate_and_store_triton,
        prepare_inputs=gpu_prepare_inputs.prepare_inputs_triton,
        silu_mul=gpu_silu_mul.silu_mul_triton,
        moe=partial(gpu_moe.moe_triton, batch_invariant=batch_invariant),
        moe_fp8=partial(gpu_moe_fp8.moe_fp8_triton, batch_invariant=batch_invariant),
        linear=linear.linear_reference,
        quantize_fp8=gpu_quantize_fp8.quantize_fp8_triton,
        silu_mul_fp8=gpu_quantize_fp8.silu_mul_fp8_triton,
        rms_norm_fp8=gpu_quantize_fp8.rms_norm_fp8_triton,
        matmul_fp8=matmul_fp8.matmul_fp8_torch,
        matmul_fp8_blocks=partial(gpu_matmul_fp8.matmul_fp8_blocks_triton, batch_invariant=batch_invariant),
        sample=gpu_sampling.sample_triton,
        argmax=sampling.argmax_reference,
        append_tokens=gpu_append_tokens.append_tokens_triton,
        apply_penalties=gpu_penalties.apply_penalties_triton,
        count_tokens=gpu_penalties.count_tokens_triton,
        apply_bias=gpu_token_bias.apply_bias_triton,
        apply_bitmask=gpu_token_bias.apply_bitmask_triton,
        top_logprobs=gpu_logprobs.top_logprobs_triton,
    )
    if not batch_invariant:
        return ops
    return replace(ops, linear=invariant_matmul.linear_invariant, matmul_fp8=invariant_matmul.matmul_fp8_invariant)
