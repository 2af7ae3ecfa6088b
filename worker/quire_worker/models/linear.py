"""Linear layers behind one factory: how a weight is stored, packed and multiplied is decided here and nowhere else.

    x    [T, in]     any stride over T; into FP8 projections also quantised already (fp8_rows.py)
    out  [T, out]    contiguous

Every projection of a model comes from `LinearFactory`; several tensors of the checkpoint may be rows of one projection (q, k and v; gate
and up). Quantisation, tensor parallelism (which is what `shard` is for) and adapters belong here, out of the decoder's sight.

On a CPU a projection is packed for the C++ kernels (quire_kernels.cpu.linear), row by row as its tensors arrive, so that the weight is
in memory once. Without them, or in float16, torch multiplies. A row's result does not depend on how many rows come with it: C++ sums
each output in one order; torch's libraries change theirs with the number of rows, for one row above all, so each such layer is tried
when it is loaded and pads what needs it. Measured: prepacked oneDNN layers differ at one row only, and only above some width (2,048 in
float32, 4,096 in bfloat16); plain ones in float32 at up to 11 rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.cpu.linear import DTYPES as NATIVE_DTYPES
from quire_kernels.cpu.linear import Int8, NativeLinear, NativeLinears
from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.ops import Ops
from quire_kernels.signatures import Linear as LinearOp
from quire_worker.models.fp8_linear import Fp8Assembly, Fp8Linear, can_be_fp8, fp8_form
from quire_worker.models.fp8_rows import Rows
from quire_worker.models.fp8_weights import StoredFp8, dequantise
from quire_worker.models.loaded_linear import GatedLinear, Linear, LoadedFp8Weight, LoadedLinear, LoadedWeight
from quire_worker.models.weight_assembly import Assembly, Packing
from quire_worker.models.weight_slots import WeightSlots

Shard = Literal["column", "row", "replicated"]
"""How tensor parallelism splits the layer: its outputs, its inputs, not at all."""
Quantization = Literal["none", "int8", "int8-weight-only", "fp8"]
"""Of float checkpoints, while they are loaded: weights with a scale for each output and, unless they stay as they are, inputs with one for
each row (W8A8).

int8, int8-weight-only: C++ only. fp8 (E4M3): where FP8 operations are given.
"""

_INT8: dict[Quantization, Int8] = {"int8": "w8a8", "int8-weight-only": "weights"}
_PLAIN_ROWS = 12
"""F.linear on a CPU is the same from so many rows on, and at none in between that is not a multiple of it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a projection that are a tensor of their own in the checkpoint."""

    name: str
    out_features: int


class LinearFactory:
    """Makes the projections of one model on one device and declares their weights."""

    def __init__(
        self,
        slots: WeightSlots,
        device: torch.device,
        dtype: torch.dtype,
        *,
        library: NativeLibrary | None = None,
        quantization: Quantization = "none",
        stored_fp8: StoredFp8 | None = None,
        fp8_ops: Ops | None = None,
        product: LinearOp | None = None,
    ) -> None:
        """`library`: the C++ kernels of this CPU, if there are any. `stored_fp8`: the checkpoint's FP8 weights, if it has any.

        fp8_ops: what computes FP8 layers; None: none are, and FP8 weights are dequantised as they come.
        product: what multiplies all others, on whatever device; None: what is fastest there.
        """
        self._slots = slots
        self._device = device
        self._dtype = dtype
        self.library = library if device.type == "cpu" and dtype in NATIVE_DTYPES else None
        """What multiplies; None: torch."""
        self._native = None if self.library is None else NativeLinears(self.library)
        assert quantization not in _INT8 or self._native is not None
        assert quantization != "fp8" or fp8_ops is not None
        assert self._native is None or (fp8_ops is None and product is None)
        self._product = product
        self._quantization = quantization
        self._stored_fp8 = stored_fp8
        self._fp8_ops = fp8_ops
        self.dequantised: list[str] = []
        """Layers that are FP8 in the checkpoint and floats here."""
        self.left_in_floats: list[str] = []
        """Layers of a mixture's experts that were to be quantised to FP8 and cannot be."""
        self.num_parameters = 0
        self.size_bytes = 0
        """Of the weights declared, without padding."""

    def linear(
        self,
        name: str,
        in_features: int,
        out_features: int,
        shard: Shard,
        *,
        parts: tuple[Part, ...] = (),
        bias: bool = False,
        is_exact: bool = False,
    ) -> LoadedLinear:
        """The projection whose weight is `name`.weight, or the weights of `parts` one below the other, likewise biases.

        is_exact: not quantised, whatever the model is.
        """
        parts = parts or (Part(name=name, out_features=out_features),)
        assert sum(part.out_features for part in parts) == out_features
        if self._fp8_ops is not None and self._is_fp8(parts, in_features, is_exact=is_exact):
            return self._fp8_linear(self._fp8_ops, parts, in_features, bias)
        layer = LoadedLinear()
        if self._native is None:
            self._assemble(parts, in_features, bias, lambda weight, vector: layer.set(self._packed(weight, vector)))
        else:
            self._pack_natively(layer, self._native, parts, in_features, bias, is_exact=is_exact)
        return layer

    def gated_linear(
        self,
        name: str,
        in_features: int,
        parts: tuple[Part, Part],
        silu_mul: Callable[[Tensor], Rows],
        *,
        bias: bool = False,
    ) -> GatedLinear:
        """silu(x @ gate) * (x @ up) of `parts`, gate and up, as many columns as each has.

        silu_mul: for where it is an operation of its own.
        """
        if self._native is not None:
            layer = LoadedLinear()
            self._pack_natively(layer, self._native, parts, in_features, bias, is_gated=True)
            return GatedLinear(layer, None)
        width = parts[0].out_features
        return GatedLinear(self.linear(name, in_features, 2 * width, "column", parts=parts, bias=bias), silu_mul)

    def copy(self, weight: Tensor) -> Linear:
        """A projection with a weight [out, in] that also has another use; not quantised."""
        if self._native is None:
            return self._packed(weight, None)
        out_features, in_features = weight.shape
        packed = self._native.empty(out_features, in_features, self._dtype)
        packed.pack_rows(weight)
        return NativeLinear(self._native, packed)

    def stacked_weight(self, in_features: int, parts: tuple[Part, ...]) -> LoadedWeight:
        """The weights of `parts` one below the other, in floats, for an operation that takes many layers at once."""
        if self._quantization == "fp8":
            self.left_in_floats += [part.name for part in parts]
        stack = LoadedWeight()
        self._assemble(parts, in_features, False, lambda weight, _: stack.set(weight))
        return stack

    def _packed(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return pack(weight, bias) if self._product is None else DenseLinear(weight, bias, self._product)

    def has_fp8_stack(self, in_features: int, parts: tuple[Part, ...]) -> bool:
        """Whether `parts`, all of one size, can be an `fp8_stack`: they are to be FP8, and each begins a block of its own."""
        as_if_one_followed = (*parts, parts[-1])
        return self._fp8_ops is not None and self._is_fp8(as_if_one_followed, in_features, is_exact=False)

    def fp8_stack(self, in_features: int, parts: tuple[Part, ...]) -> LoadedFp8Weight:
        """Of parts that `has_fp8_stack`: one below the other, with scales [out], or by blocks [out / 128, in / 128]."""
        assert self._fp8_ops is not None
        stack = LoadedFp8Weight()
        self._assemble_fp8(
            self._fp8_ops, parts, in_features, False, lambda values, scales, _: stack.set(values, scales)
        )
        return stack

    def _is_fp8(self, parts: tuple[Part, ...], in_features: int, *, is_exact: bool) -> bool:
        """A projection is FP8 if all of its parts are in the checkpoint, or if none is and it is to be quantised here."""
        are_stored = [self._is_stored_fp8(part.name) for part in parts]
        is_blocks = self._stored_fp8 is not None and self._stored_fp8.format.is_blocks and any(are_stored)
        if not can_be_fp8(in_features, [part.out_features for part in parts], is_blocks=is_blocks):
            return False
        return all(are_stored) or (self._quantization == "fp8" and not any(are_stored) and not is_exact)

    def _is_stored_fp8(self, name: str) -> bool:
        return self._stored_fp8 is not None and name in self._stored_fp8.layers

    def _fp8_linear(self, ops: Ops, parts: tuple[Part, ...], in_features: int, bias: bool) -> LoadedLinear:
        layer = LoadedLinear(form=fp8_form(is_blocks=self._has_blocks(parts)))
        self._assemble_fp8(
            ops,
            parts,
            in_features,
            bias,
            lambda values, scales, vector: layer.set(Fp8Linear(ops, values, scales, vector)),
        )
        return layer

    def _has_blocks(self, parts: tuple[Part, ...]) -> bool:
        stored = self._stored_fp8
        return stored is not None and stored.format.is_blocks and self._is_stored_fp8(parts[0].name)

    def _assemble_fp8(
        self,
        ops: Ops,
        parts: tuple[Part, ...],
        in_features: int,
        bias: bool,
        finish: Callable[[Tensor, Tensor, Tensor | None], None],
    ) -> None:
        assembly = Fp8Assembly(
            ops=ops,
            shape=(sum(part.out_features for part in parts), in_features),
            is_blocks=self._has_blocks(parts),
            has_bias=bias,
            device=self._device,
            dtype=self._dtype,
            missing=len(parts) * (1 + bias),
            finish=finish,
        )
        accept_bias = assembly.accept_bias if bias else None
        accept_fp8 = assembly.accept_fp8 if self._is_stored_fp8(parts[0].name) else None
        self._declare(parts, in_features, 1, assembly.accept_weight, accept_bias, accept_fp8)

    def _assemble(
        self, parts: tuple[Part, ...], in_features: int, bias: bool, use: Callable[[Tensor, Tensor | None], None]
    ) -> None:
        assembly = Assembly(
            shape=(sum(part.out_features for part in parts), in_features),
            device=self._device,
            dtype=self._dtype,
            missing=len(parts) * (1 + bias),
            finish=lambda weight, vector: use(weight, vector if bias else None),
        )
        accept_bias = assembly.accept_bias if bias else None
        self._declare(parts, in_features, self._dtype.itemsize, assembly.accept_weight, accept_bias)

    def _pack_natively(
        self,
        layer: LoadedLinear,
        native: NativeLinears,
        parts: tuple[Part, ...],
        in_features: int,
        bias: bool,
        *,
        is_exact: bool = False,
        is_gated: bool = False,
    ) -> None:
        out_features = sum(part.out_features for part in parts)
        int8 = None if is_exact else _INT8.get(self._quantization)
        packing = Packing(
            make=lambda: native.empty(
                out_features, in_features, self._dtype, has_bias=bias, gate_up=is_gated, int8=int8
            ),
            missing=len(parts) * (1 + bias),
            finish=lambda weight: layer.set(NativeLinear(native, weight)),
        )
        accept_bias = packing.accept_bias if bias else None
        itemsize = self._dtype.itemsize if int8 is None else 1
        self._declare(parts, in_features, itemsize, packing.accept_weight, accept_bias)

    def _declare(
        self,
        parts: tuple[Part, ...],
        in_features: int,
        itemsize: int,
        accept_weight: "_Accept",
        accept_bias: "_Accept | None",
        accept_fp8: "_AcceptFp8 | None" = None,
    ) -> None:
        """`accept_fp8` takes FP8 weights as they are; None: they are dequantised for `accept_weight`."""
        start = 0
        for part in parts:
            shape = (part.out_features, in_features)
            if self._stored_fp8 is not None and self._is_stored_fp8(part.name):
                accept = accept_fp8 or self._dequantising(part.name, accept_weight)
                self._stored_fp8.declare(self._slots, part.name, shape, _pair_from_row(accept, start))
            else:
                self._slots.declare(f"{part.name}.weight", shape, _from_row(accept_weight, start))
            self.num_parameters += part.out_features * in_features
            self.size_bytes += part.out_features * in_features * itemsize
            if accept_bias is not None:
                self._slots.declare(f"{part.name}.bias", shape[:1], _from_row(accept_bias, start))
                self.num_parameters += part.out_features
                self.size_bytes += part.out_features * self._dtype.itemsize
            start += part.out_features

    def _dequantising(self, name: str, accept: "_Accept") -> "_AcceptFp8":
        self.dequantised.append(name)
        device, dtype = self._device, self._dtype
        return lambda values, scales, first_row: accept(
            dequantise(values.to(device), scales.to(device), dtype), first_row
        )


_Accept = Callable[[Tensor, int], None]
"""(tensor, its first row in the projection)"""
_AcceptFp8 = Callable[[Tensor, Tensor, int], None]
"""(values, scales, their first row in the projection)"""


def _from_row(accept: _Accept, first_row: int) -> Callable[[Tensor], None]:
    return lambda tensor: accept(tensor, first_row)


def _pair_from_row(accept: _AcceptFp8, first_row: int) -> Callable[[Tensor, Tensor], None]:
    return lambda values, scales: accept(values, scales, first_row)


def pack(weight: Tensor, bias: Tensor | None) -> Linear:
    """The fastest form of a linear layer for the weight's device and dtype; weight [out, in]."""
    if weight.device.type != "cpu":
        return DenseLinear(weight, bias)
    return PackedLinear(weight, bias) if _packs(weight.dtype) else PaddedLinear(weight, bias)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes weights of this type here: bfloat16 only on processors with AVX-512 or what came after it."""
    if not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class DenseLinear:
    """The weight as it is; torch's product, unless told another."""

    def __init__(self, weight: Tensor, bias: Tensor | None, product: LinearOp = F.linear) -> None:
        self._weight, self._bias, self._product = weight, bias, product

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x, self._weight, self._bias)


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
