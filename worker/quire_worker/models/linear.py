"""Linear layers behind one factory: how a weight is stored, packed and multiplied is decided here and nowhere else.

    x    [T, in]     any stride over T
    out  [T, out]    contiguous

Every projection of a model comes from `LinearFactory.linear(name, in, out, shard)`; several tensors of the checkpoint may be rows of one
projection (q, k and v; gate and up). Quantisation, tensor parallelism (which is what `shard` is for) and adapters belong
here later, out of the decoder's sight.

A row's result does not depend on how many rows come with it. Matrix libraries change their order of summation with the number of rows,
for one row above all, so each layer is tried when it is loaded and pads what needs it. Measured: prepacked oneDNN layers differ at one
row only, and only above some width (2,048 in float32, 4,096 in bfloat16); plain ones in float32 at up to 11 rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_worker.models.weight_slots import WeightSlots

Shard = Literal["column", "row", "replicated"]
"""How tensor parallelism splits the layer: its outputs, its inputs, not at all."""

_PLAIN_ROWS = 12
"""F.linear on a CPU is the same from so many rows on, and at none in between that is not a multiple of it."""


class Linear(Protocol):
    """A loaded projection."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a projection that are a tensor of their own in the checkpoint."""

    name: str
    out_features: int


class LinearFactory:
    """Makes the projections of one model on one device and declares their weights."""

    def __init__(self, slots: WeightSlots, device: torch.device, dtype: torch.dtype) -> None:
        self._slots = slots
        self._device = device
        self._dtype = dtype
        self.num_parameters = 0

    def linear(
        self,
        name: str,
        in_features: int,
        out_features: int,
        shard: Shard,
        *,
        parts: tuple[Part, ...] = (),
        bias: bool = False,
    ) -> "LoadedLinear":
        """The projection whose weight is `name`.weight, or the weights of `parts` one below the other, likewise biases."""
        parts = parts or (Part(name=name, out_features=out_features),)
        assert sum(part.out_features for part in parts) == out_features
        layer = LoadedLinear()
        assembly = _Assembly(
            weight=torch.empty(0),
            bias=torch.empty(0),
            missing=len(parts) * (1 + bias),
            finish=lambda weight, vector: layer.set(pack(weight, vector if bias else None)),
        )
        start = 0
        for part in parts:
            rows = slice(start, start + part.out_features)
            start += part.out_features
            self._declare(f"{part.name}.weight", assembly, "weight", rows, (out_features, in_features))
            if bias:
                self._declare(f"{part.name}.bias", assembly, "bias", rows, (out_features,))
        return layer

    def _declare(self, name: str, assembly: "_Assembly", field: str, rows: slice, whole: tuple[int, ...]) -> None:
        shape = (rows.stop - rows.start, *whole[1:])
        self.num_parameters += shape[0] * (shape[1] if len(shape) > 1 else 1)

        def accept(tensor: Tensor) -> None:
            if shape == whole:
                setattr(assembly, field, tensor.to(device=self._device, dtype=self._dtype))
            else:
                if getattr(assembly, field).shape != whole:
                    setattr(assembly, field, torch.empty(whole, device=self._device, dtype=self._dtype))
                getattr(assembly, field)[rows].copy_(tensor)
            assembly.one_arrived()

        self._slots.declare(name, shape, accept)


@dataclass(kw_only=True)
class _Assembly:
    """The tensors of a projection on their way in; let go of as soon as the last one is there."""

    weight: Tensor
    bias: Tensor
    missing: int
    finish: Callable[[Tensor, Tensor], None]

    def one_arrived(self) -> None:
        self.missing -= 1
        if self.missing == 0:
            weight, bias = self.weight, self.bias
            self.weight = self.bias = torch.empty(0)
            self.finish(weight, bias)


class LoadedLinear:
    """A projection that gets its weight later. Calling it before is an error."""

    def __init__(self) -> None:
        self._run: Linear | None = None

    def set(self, run: Linear) -> None:
        self._run = run

    def __call__(self, x: Tensor) -> Tensor:
        assert self._run is not None, "the weights are not loaded yet"
        return self._run(x)


def pack(weight: Tensor, bias: Tensor | None) -> Linear:
    """The fastest form of a linear layer for the weight's device and dtype; weight [out, in]."""
    if weight.device.type != "cpu":
        return DenseLinear(weight, bias)
    if weight.dtype in (torch.float32, torch.bfloat16) and torch._C._has_mkldnn:
        return PackedLinear(weight, bias)
    return PaddedLinear(weight, bias)


class DenseLinear:
    """torch's own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class PaddedLinear:
    """torch's own on a CPU, with few rows padded so that none depends on its company."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        if num_rows >= _PLAIN_ROWS:
            return F.linear(x, self._weight, self._bias)
        return F.linear(_padded(x, _PLAIN_ROWS), self._weight, self._bias)[:num_rows]


class PackedLinear:
    """oneDNN with the weight in its blocked order: halves the time of a step of few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias
        self._pads_single_row = self._single_row_differs(weight.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1 and self._pads_single_row:
            return self._multiply(_padded(x, 2))[:1]
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out

    def _single_row_differs(self, in_features: int) -> bool:
        row = torch.linspace(-1, 1, in_features).to(self._weight.dtype)
        # Signs alternate so that sums cancel and every rounding shows.
        row[::2] *= -1
        rows = row.expand(2, -1).contiguous()
        return not torch.equal(self._multiply(rows)[:1], self._multiply(rows[:1]))


def _padded(x: Tensor, num_rows: int) -> Tensor:
    return torch.cat((x, x.new_zeros(num_rows - x.shape[0], x.shape[1])))
