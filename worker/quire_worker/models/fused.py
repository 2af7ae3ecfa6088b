"""A decoder as one C++ call, where all of it can be one: dense layers on packed weights, heads of whole vectors.

The per-operation road in decoder.py stays for everything else: GPUs, torch's CPU operations, experts. Both compute the same model;
their roundings differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quire_kernels.cpu.linear import NativeWeight
from quire_kernels.cpu.native_attention import fits_native_attention
from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.cpu.native_stack import NativeStack, StackLayer, StackQueries, StackShape
from quire_worker.models.loaded_linear import GatedLinear, LoadedLinear
from quire_worker.models.step_inputs import AttentionInputs, StepInputs


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A layer's loaded parts."""

    input_norm: Tensor
    mlp_norm: Tensor
    head_norms: tuple[Tensor, Tensor] | None
    qkv: LoadedLinear
    out: LoadedLinear
    gate_up: GatedLinear
    down: LoadedLinear
    group: int
    k_cache: Tensor
    v_cache: Tensor


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What stands before and after the layers."""

    embedding: Tensor
    norm: Tensor
    head: NativeWeight | None
    cos_sin: Tensor


class FusedDecoder:
    """Loaded layers and their cache, run whole."""

    def __init__(self, stack: NativeStack, layers: Sequence[DenseLayer], head: NativeWeight) -> None:
        self._stack = stack
        self._head = head.layer()
        self._stack.bind_kv_cache([layer.k_cache for layer in layers], [layer.v_cache for layer in layers])

    def __call__(self, step: StepInputs) -> Tensor | None:
        """Logits [S, V] float32 of the sampled tokens, None if there are none. Stores the step's keys and values."""
        return self._run(step)

    def hidden(self, step: StepInputs) -> Tensor | None:
        """[S, E], what `logits` is made of, in place of it."""
        return self._run(step, gives_hidden=True)

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """[S, V] float32, to the bit what the call would have given."""
        return self._head(hidden_SE, f32_out=True)

    def _run(self, step: StepInputs, *, gives_hidden: bool = False) -> Tensor | None:
        return self._stack.run(
            step.token_ids,
            step.positions,
            step.slots,
            _queries(step.attention),
            step.sampled_tokens,
            _queries(step.sampled_attention),
            step.num_sampled,
            gives_hidden=gives_hidden,
        )


def fuse(library: NativeLibrary, shape: StackShape, layers: Sequence[DenseLayer], ends: Ends) -> FusedDecoder | None:
    """None where a part is not made for it."""
    stacked = [_stack_layer(layer) for layer in layers]
    whole = [layer for layer in stacked if layer is not None]
    cache = layers[0].k_cache
    fits = fits_native_attention(cache.dtype, shape.head_dim, cache.shape[2])
    if len(whole) < len(layers) or ends.head is None or not fits:
        return None
    stack = NativeStack(
        library,
        shape,
        whole,
        embedding=ends.embedding,
        final_norm=ends.norm,
        head=ends.head,
        cos_sin=ends.cos_sin,
    )
    return FusedDecoder(stack, layers, ends.head)


def _stack_layer(layer: DenseLayer) -> StackLayer | None:
    qkv, out, gate_up, down = (linear.native for linear in (layer.qkv, layer.out, layer.gate_up, layer.down))
    if qkv is None or out is None or gate_up is None or down is None:
        return None
    q_norm, k_norm = layer.head_norms or (None, None)
    return StackLayer(
        input_norm=layer.input_norm,
        mlp_norm=layer.mlp_norm,
        q_norm=q_norm,
        k_norm=k_norm,
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        group=layer.group,
    )


def _queries(attention: AttentionInputs) -> StackQueries:
    return StackQueries(
        block_tables=attention.block_tables, query_starts=attention.query_starts, seq_lens=attention.seq_lens
    )
