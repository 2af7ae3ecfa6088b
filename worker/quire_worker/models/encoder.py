"""The encoder that BERT, RoBERTa and DistilBERT are configurations of: every token sees all tokens of its own sequence.

    embed -> norm -> num_layers x [attention, add, norm, MLP, add, norm]

Sequences are packed one after the other without padding, those of one length side by side, so that attention is one call for each length.
A sequence's result depends on nothing but its own tokens: projections compute each row alone, attention each sequence, and the shape of a
call decides only how often the same work is done. The numerics follow transformers' implementations.

Shapes: T tokens of all sequences, H heads, D head dim, E hidden size, B sequences of L tokens.
Must not know requests or pooling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_worker.models.encoder_config import Activation, EncoderConfig
from quire_worker.models.linear import LinearFactory, Part
from quire_worker.models.weight_slots import WeightSlots

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Sequences of one length that lie side by side."""

    first_token: int
    num_sequences: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.first_token, self.first_token + self.num_sequences * self.length)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderInputs:
    """Packed sequences, on the model's device."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    token_types: Tensor | None
    """[T] int64; None: all 0."""
    runs: tuple[Run, ...]
    """Cover the tokens without gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """Of a layer's tensors in the checkpoint."""

    query_key_value: tuple[str, str, str]
    attention_out: str
    attention_norm: str
    up: str
    down: str
    norm: str


class Encoder:
    """A model on one device. Filled by `slots.load`, then callable. Names are those of the base class, without its prefix."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        slots: WeightSlots,
        device: torch.device,
        dtype: torch.dtype,
        linears: LinearFactory,
    ) -> None:
        """`linears` is for the same slots, device and dtype."""
        self._tensors = Tensors(slots, device, dtype)
        self._linears = linears
        size = config.hidden_size
        declare = self._tensors.declare
        self._words = declare("embeddings.word_embeddings.weight", config.vocab_size, size)
        self._positions = declare("embeddings.position_embeddings.weight", config.num_positions, size)
        self._types = (
            declare("embeddings.token_type_embeddings.weight", config.num_token_types, size)
            if config.num_token_types
            else None
        )
        self._norm = LayerNorm("embeddings.LayerNorm", config, self._tensors)
        self._layers = [_Layer(_names(config, i), config, linears, self._tensors) for i in range(config.num_layers)]
        slots.ignore("embeddings.position_ids")

    @property
    def num_parameters(self) -> int:
        """Elements of all weights."""
        return self._linears.num_parameters + self._tensors.num_parameters

    @property
    def weights_size_bytes(self) -> int:
        """Of all of them, padding not counted."""
        return self._linears.size_bytes + self._tensors.size_bytes

    def __call__(self, inputs: EncoderInputs) -> Tensor:
        """Hidden states [T, E] after the last layer."""
        x = self._words.tensor.index_select(0, inputs.token_ids)
        if self._types is not None:
            types = self._types.tensor
            x = x + (types[0] if inputs.token_types is None else types.index_select(0, inputs.token_types))
        x = x + self._positions.tensor.index_select(0, inputs.positions)
        x = self._norm(x)
        for layer in self._layers:
            x = layer(x, inputs.runs)
        return x


class HeldTensor:
    """A tensor that comes later."""

    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor = torch.empty(0)


class Tensors:
    """Declares tensors that are used as they are."""

    def __init__(self, slots: WeightSlots, device: torch.device, dtype: torch.dtype) -> None:
        self._slots, self._device, self._dtype = slots, device, dtype
        self.num_parameters = 0

    @property
    def size_bytes(self) -> int:
        return self.num_parameters * self._dtype.itemsize

    def declare(self, name: str, *shape: int) -> HeldTensor:
        held = HeldTensor()
        size = 1
        for length in shape:
            size *= length
        self.num_parameters += size

        def accept(tensor: Tensor) -> None:
            held.tensor = tensor.to(device=self._device, dtype=self._dtype)

        self._slots.declare(name, shape, accept)
        return held


class LayerNorm:
    """Over the hidden size."""

    def __init__(self, name: str, config: EncoderConfig, tensors: Tensors) -> None:
        self._shape = (config.hidden_size,)
        self._weight = tensors.declare(f"{name}.weight", *self._shape)
        self._bias = tensors.declare(f"{name}.bias", *self._shape)
        self._eps = config.layer_norm_eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._shape, self._weight.tensor, self._bias.tensor, self._eps)


class _Layer:
    def __init__(self, names: _Names, config: EncoderConfig, linears: LinearFactory, tensors: Tensors) -> None:
        size, width = config.hidden_size, config.intermediate_size
        parts = tuple(Part(name=name, out_features=size) for name in names.query_key_value)
        self._qkv = linears.linear(names.query_key_value[0], size, 3 * size, "column", parts=parts, bias=True)
        self._out = linears.linear(names.attention_out, size, size, "row", bias=True)
        self._up = linears.linear(names.up, size, width, "column", bias=True)
        self._down = linears.linear(names.down, width, size, "row", bias=True)
        self._attention_norm = LayerNorm(names.attention_norm, config, tensors)
        self._norm = LayerNorm(names.norm, config, tensors)
        self._activation = _ACTIVATIONS[config.activation]
        self._heads = (config.num_heads, config.head_dim)

    def __call__(self, x: Tensor, runs: tuple[Run, ...]) -> Tensor:
        x = self._attention_norm(self._out(self._attend(self._qkv(x), runs)) + x)
        return self._norm(self._down(self._activation(self._up(x))) + x)

    def _attend(self, qkv: Tensor, runs: tuple[Run, ...]) -> Tensor:
        """qkv [T, 3 * H * D]; [T, H * D]."""
        num_tokens = qkv.shape[0]
        H, D = self._heads
        out = qkv.new_empty(num_tokens, H * D)
        for run in runs:
            B, L = run.num_sequences, run.length
            q_BHLD, k_BHLD, v_BHLD = qkv[run.tokens].view(B, L, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
            o_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD)
            out[run.tokens].view(B, L, H, D).copy_(o_BHLD.transpose(1, 2))
        return out


def _names(config: EncoderConfig, index: int) -> _Names:
    if config.family == "distilbert":
        layer = f"transformer.layer.{index}"
        return _Names(
            query_key_value=(f"{layer}.attention.q_lin", f"{layer}.attention.k_lin", f"{layer}.attention.v_lin"),
            attention_out=f"{layer}.attention.out_lin",
            attention_norm=f"{layer}.sa_layer_norm",
            up=f"{layer}.ffn.lin1",
            down=f"{layer}.ffn.lin2",
            norm=f"{layer}.output_layer_norm",
        )
    layer = f"encoder.layer.{index}"
    attention = f"{layer}.attention"
    return _Names(
        query_key_value=(f"{attention}.self.query", f"{attention}.self.key", f"{attention}.self.value"),
        attention_out=f"{attention}.output.dense",
        attention_norm=f"{attention}.output.LayerNorm",
        up=f"{layer}.intermediate.dense",
        down=f"{layer}.output.dense",
        norm=f"{layer}.output.LayerNorm",
    )
