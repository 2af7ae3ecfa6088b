"""The decoder that every supported architecture is a configuration of.

    embed -> num_layers x [norm, attention, norm, MLP or experts], each added to the residual -> norm -> output head

Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE and Mixtral differ in biases, norms of queries and keys, windows, and in what stands in for
the MLP. The numerics follow transformers' implementations, which the parity tests hold it to.

Shapes: T tokens, H query heads, K kv heads, D head dim, E hidden size, S sampled tokens, V vocabulary.
Must not know requests or plans: it sees tokens, positions, slots and block tables.
"""

from functools import partial

import torch
from torch import Tensor

from quire_kernels.cpu.native_stack import StackShape
from quire_kernels.ops import Ops
from quire_kernels.quantize_fp8 import FP8
from quire_kernels.rotary import rotary_cos_sin
from quire_kernels.rotate_and_store import CacheTarget
from quire_worker.models.config import ModelConfig
from quire_worker.models.fp8_rows import Norm, NormBefore, Rows, activation_before
from quire_worker.models.fused import DenseLayer, Ends, FusedDecoder, fuse
from quire_worker.models.kv_groups import KVPlace
from quire_worker.models.kv_scales import KVScales
from quire_worker.models.linear import LinearFactory, Part
from quire_worker.models.loaded_linear import LoadedLinear
from quire_worker.models.moe import MoeBlock
from quire_worker.models.step_inputs import AttentionInputs, StepInputs
from quire_worker.models.weight_slots import WeightSlots


class Decoder:
    """A model on one device. Filled by `slots.load`, given its KV cache by `bind_kv_cache`, then callable."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        ops: Ops,
        slots: WeightSlots,
        places: tuple[KVPlace, ...],
        device: torch.device,
        dtype: torch.dtype,
        num_positions: int,
        linears: LinearFactory | None = None,
    ) -> None:
        """`linears` is for the same slots, device and dtype; None: one without C++ kernels."""
        linears = linears or LinearFactory(slots, device, dtype)
        self._norms = _Norms(slots, device, dtype)
        self._ops = ops
        self._eps = config.rms_norm_eps
        kv_scales = [
            KVScales(slots, f"model.layers.{i}.self_attn", config.num_kv_heads, device)
            for i in range(config.num_layers)
        ]
        self._layers = [
            _Layer(i, config, linears, self._norms, ops, places[i], kv_scales[i]) for i in range(config.num_layers)
        ]
        leaders = {place.group: layer.attention for layer, place in zip(self._layers, places, strict=True)}
        self._group_leaders = [leaders[group] for group in range(len(leaders))]
        self._norm = self._norms.declare("model.norm.weight", config.hidden_size)
        self._embedding = torch.empty(0)
        self._head = self._declare_head(config, linears, slots, device, dtype)
        table = config.rope.table_config(config.head_dim, num_positions)
        self._cos_sin = rotary_cos_sin(table, dtype=dtype, device=str(device))
        self._linears = linears
        self._library = linears.library
        self._shape = StackShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
            windows=tuple(leader.window for leader in self._group_leaders),
        )
        self._fused: FusedDecoder | None = None
        slots.ignore("rotary_emb.inv_freq")

    @property
    def num_parameters(self) -> int:
        """Elements of all weights; a tied output head is not counted twice."""
        return self._linears.num_parameters + self._norms.num_parameters + self._embedding.numel()

    @property
    def weights_size_bytes(self) -> int:
        """Of all of them, padding and a tied head's second copy not counted."""
        rest = self._norms.num_parameters + self._embedding.numel()
        return self._linears.size_bytes + rest * self._embedding.dtype.itemsize

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """kv_cache [N blocks, layers of a group, 2, K, block size, D], contiguous; layers of different groups share its blocks.

        Of float8_e4m3fn, it is used with the checkpoint's scales, or 1.
        """
        for layer in self._layers:
            layer.attention.bind_kv_cache(kv_cache)
        self._fused = self._fuse()

    def _fuse(self) -> FusedDecoder | None:
        """All of it as one call, where that can be."""
        dense = [layer.dense_parts() for layer in self._layers]
        layers = [layer for layer in dense if layer is not None]
        if self._library is None or self._ops.name != "cpu" or len(layers) < len(dense):
            return None
        ends = Ends(embedding=self._embedding, norm=self._norm.tensor, head=self._head.native, cos_sin=self._cos_sin)
        return fuse(self._library, self._shape, layers, ends)

    def __call__(self, step: StepInputs) -> Tensor | None:
        """Logits [S, V] of the sampled tokens, float32 or of the model's dtype; None if there are none. Stores keys and values.

        Without a head: hidden states [S, E], likewise."""
        if self._fused is not None:
            return self._fused(step)
        hidden = self._run(step)
        return None if hidden is None else self._head(hidden)

    def hidden(self, step: StepInputs) -> Tensor | None:
        """What `logits` makes of it [S, E] is what the call gives: for steps that want more logits than may be in memory at once."""
        return self._run(step) if self._fused is None else self._fused.hidden(step)

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """[S, V] of any of the rows of `hidden`."""
        return self._head(hidden_SE) if self._fused is None else self._fused.logits(hidden_SE)

    def _run(self, step: StepInputs) -> Tensor | None:
        residual = self._embedding.index_select(0, step.token_ids)
        x: Tensor | None = None
        plans = self._plan(step.attention)
        *layers, last_layer = self._layers
        for layer in layers:
            x, residual = layer(x, residual, step, self._cos_sin, plans)
        x, residual = last_layer(x, residual, step, self._cos_sin, plans, is_last=True)
        if not step.num_sampled:
            return None
        x, _ = self._ops.rms_norm(x, self._norm.tensor, self._eps, residual)
        return x

    def _plan(self, attention: AttentionInputs) -> tuple[object, ...]:
        """What attention prepares once a step, by KV group."""
        return tuple(
            self._ops.plan_attention(
                layer.k_cache, table, attention.query_starts, attention.seq_lens, window=layer.window
            )
            for layer, table in zip(self._group_leaders, attention.block_tables, strict=True)
        )

    def _declare_head(
        self, config: ModelConfig, linears: LinearFactory, slots: WeightSlots, device: torch.device, dtype: torch.dtype
    ) -> LoadedLinear:
        name = "model.embed_tokens.weight"
        shape = (config.vocab_size, config.hidden_size)
        if config.has_head and not config.ties_embeddings:

            def accept(tensor: Tensor) -> None:
                self._embedding = tensor.to(device=device, dtype=dtype)

            slots.declare(name, shape, accept)
            return linears.linear("lm_head", config.hidden_size, config.vocab_size, "column", is_exact=True)

        head = LoadedLinear()

        def accept_tied(tensor: Tensor) -> None:
            self._embedding = tensor.to(device=device, dtype=dtype)
            # On a CPU the head is a packed copy: a row lookup needs the plain order, the product is twice as fast without it.
            # In place of a head that is not wanted, x @ 1, which is x to the bit, leaves the model one C++ call.
            head.set(
                linears.copy(self._embedding if config.has_head else torch.eye(shape[1], device=device, dtype=dtype))
            )

        slots.declare(name, shape, accept_tied)
        slots.ignore("lm_head.weight")
        return head


class _Norms:
    """Declares norms."""

    def __init__(self, slots: WeightSlots, device: torch.device, dtype: torch.dtype) -> None:
        self._slots, self._device, self._dtype = slots, device, dtype
        self.num_parameters = 0

    def declare(self, name: str, size: int) -> Norm:
        norm = Norm()
        self.num_parameters += size

        def accept(tensor: Tensor) -> None:
            norm.tensor = tensor.to(device=self._device, dtype=self._dtype)

        self._slots.declare(name, (size,), accept)
        return norm


class _Layer:
    def __init__(
        self,
        index: int,
        config: ModelConfig,
        linears: LinearFactory,
        norms: _Norms,
        ops: Ops,
        place: KVPlace,
        kv_scales: KVScales,
    ) -> None:
        name = f"model.layers.{index}"
        self.attention = _Attention(name, config, linears, norms, ops, place, config.windows[index], kv_scales)
        self._mlp: MoeBlock | _Mlp
        mlp_form = None
        if config.moe is not None and index in config.moe.layers:
            self._mlp = MoeBlock(name, config, config.moe, linears, ops)
        else:
            self._mlp = _Mlp(name, config, linears, ops)
            mlp_form = self._mlp.gate_up.form
        input_norm = norms.declare(f"{name}.input_layernorm.weight", config.hidden_size)
        mlp_norm = norms.declare(f"{name}.post_attention_layernorm.weight", config.hidden_size)
        self._input_norm = NormBefore(ops, input_norm, config.rms_norm_eps, self.attention.qkv.form)
        self._mlp_norm = NormBefore(ops, mlp_norm, config.rms_norm_eps, mlp_form)

    def __call__(
        self,
        x: Tensor | None,
        residual: Tensor,
        step: StepInputs,
        cos_sin: Tensor,
        plans: tuple[object, ...],
        *,
        is_last: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """x, still to be added to the residual (None before the first layer), and the residual; of the last layer, the sampled rows."""
        normed, residual = self._input_norm(x, residual)
        x = self.attention(normed, step, cos_sin, plans, is_last=is_last)
        if is_last and step.sampled_tokens is not None:
            residual = residual[step.sampled_tokens]
        if x.shape[0] == 0:
            return x, residual
        normed, residual = self._mlp_norm(x, residual)
        return self._mlp(normed), residual

    def dense_parts(self) -> DenseLayer | None:
        """What it is made of, once loaded; None if it has experts."""
        if isinstance(self._mlp, MoeBlock):
            return None
        attention = self.attention
        return DenseLayer(
            input_norm=self._input_norm.weight,
            mlp_norm=self._mlp_norm.weight,
            head_norms=attention.norms,
            qkv=attention.qkv,
            out=attention.out,
            gate_up=self._mlp.gate_up,
            down=self._mlp.down,
            group=attention.group,
            k_cache=attention.k_cache,
            v_cache=attention.v_cache,
        )


class _Mlp:
    def __init__(self, name: str, config: ModelConfig, linears: LinearFactory, ops: Ops) -> None:
        width, bias = config.intermediate_size, config.has_mlp_bias
        parts = (
            Part(name=f"{name}.mlp.gate_proj", out_features=width),
            Part(name=f"{name}.mlp.up_proj", out_features=width),
        )
        self.down = linears.linear(f"{name}.mlp.down_proj", width, config.hidden_size, "row", bias=bias)
        silu_mul = activation_before(ops, self.down.form)
        self.gate_up = linears.gated_linear(f"{name}.mlp.gate_up_proj", config.hidden_size, parts, silu_mul, bias=bias)

    def __call__(self, x: Rows) -> Tensor:
        return self.down(self.gate_up(x))


class _Attention:
    def __init__(
        self,
        name: str,
        config: ModelConfig,
        linears: LinearFactory,
        norms: _Norms,
        ops: Ops,
        place: KVPlace,
        window: int | None,
        kv_scales: KVScales,
    ) -> None:
        self._num_heads, self._num_kv_heads, self._head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        prefix = f"{name}.self_attn"
        parts = (
            Part(name=f"{prefix}.q_proj", out_features=query_size),
            Part(name=f"{prefix}.k_proj", out_features=kv_size),
            Part(name=f"{prefix}.v_proj", out_features=kv_size),
        )
        self.qkv = linears.linear(
            f"{prefix}.qkv_proj",
            config.hidden_size,
            query_size + 2 * kv_size,
            "column",
            parts=parts,
            bias=config.has_qkv_bias,
        )
        self.out = linears.linear(
            f"{prefix}.o_proj", query_size, config.hidden_size, "row", bias=config.has_output_bias
        )
        self._head_norms = (
            (
                norms.declare(f"{prefix}.q_norm.weight", config.head_dim),
                norms.declare(f"{prefix}.k_norm.weight", config.head_dim),
            )
            if config.has_qk_norm
            else None
        )
        self._eps = config.rms_norm_eps
        self._scale = config.head_dim**-0.5
        self.window = window
        self._place = place
        self._ops = ops
        self._loaded_kv_scales = kv_scales
        self._kv_scales: Tensor | None = None
        self.k_cache = self.v_cache = torch.empty(0)

    @property
    def norms(self) -> tuple[Tensor, Tensor] | None:
        """Of query and key heads."""
        return None if self._head_norms is None else (self._head_norms[0].tensor, self._head_norms[1].tensor)

    @property
    def group(self) -> int:
        """KV group."""
        return self._place.group

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        self.k_cache = kv_cache[:, self._place.layer, 0]
        self.v_cache = kv_cache[:, self._place.layer, 1]
        self._kv_scales = self._loaded_kv_scales.tensor if kv_cache.dtype == FP8 else None

    def __call__(
        self, x: Rows, step: StepInputs, cos_sin: Tensor, plans: tuple[object, ...], *, is_last: bool
    ) -> Tensor:
        """x [T, E] normalised; the result [T, E], or [S, E] in the last layer."""
        q_THD, k_TKD, v_TKD = self._project(x)
        slots = step.slots[self._place.group]
        target = CacheTarget(k_cache=self.k_cache, v_cache=self.v_cache, slots=slots, kv_scales=self._kv_scales)
        q_THD = self._ops.rotate_and_store(
            q_THD, k_TKD, v_TKD, step.positions, cos_sin, target, norms=self.norms, eps=self._eps
        )
        if not is_last or step.sampled_tokens is None:
            return self.out(self._attend(q_THD, step.attention, plans[self._place.group]))
        # Keys and values of every token are stored; of the queries only the sampled ones lead anywhere.
        if not step.num_sampled:
            return q_THD[:0].flatten(1)
        return self.out(self._attend(q_THD[step.sampled_tokens], step.sampled_attention, None))

    def _project(self, x: Rows) -> tuple[Tensor, Tensor, Tensor]:
        H, K = self._num_heads, self._num_kv_heads
        qkv = self.qkv(x)
        qkv = qkv.view(qkv.shape[0], H + 2 * K, self._head_dim)
        q_THD, k_TKD, v_TKD = qkv.split_with_sizes((H, K, K), dim=1)
        return q_THD, k_TKD, v_TKD

    def _attend(self, q_THD: Tensor, attention: AttentionInputs, plan: object) -> Tensor:
        attend = (
            self._ops.paged_attention
            if self._kv_scales is None
            else partial(self._ops.paged_attention_fp8, kv_scales=self._kv_scales)
        )
        out = attend(
            q_THD,
            self.k_cache,
            self.v_cache,
            attention.block_tables[self._place.group],
            attention.query_starts,
            attention.seq_lens,
            scale=self._scale,
            window=self.window,
            max_query_len=attention.max_query_len,
            max_seq_len=attention.max_seq_len,
            plan=plan,
        )
        return out.flatten(1)
