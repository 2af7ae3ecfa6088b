"""Linear layers on weights packed for the C++ kernels: x [T, in] -> [T, out], float32 or bfloat16.

    linears = NativeLinears(library)
    weight = linears.empty(out_features, in_features, torch.bfloat16)     zeros, in the kernels' order
    weight.pack_rows(tensor, first_row)                                    any number of times, until all rows are there
    weight.pack_bias(vector, first_row)
    out = NativeLinear(linears, weight)(x)

A row's bits do not depend on the rows beside it. With `int8` the weight is int8, symmetric per output, made from float rows when they
are packed. "w8a8": inputs are quantised per row when they come (symmetric, int8) and products summed exactly. "weights": inputs stay as
they are, and their products with the int8 values, which floats hold exactly, are summed in float32 and scaled at the end. With `gate_up`
the first half of the rows are gates and the second half ups, and silu(gate) * up comes out, rounded once.
"""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from typing import Literal

import torch
from torch import Tensor

from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.cpu.weight_memory import WeightMemory

DTYPES = (torch.float32, torch.bfloat16)
Int8 = Literal["w8a8", "weights"]
"""What is int8: weights and inputs, or weights alone."""
_F32, _BF16, _I8, _I8_FOR_F32, _I8_FOR_BF16 = range(5)
_ALIGNMENT = 64


class PackedStruct(ctypes.Structure):
    """`Packed` of native/gemm.h."""

    _fields_ = (
        ("dtype", c_int32),
        ("gate_up", c_int32),
        ("out_features", c_int64),
        ("in_features", c_int64),
        ("data", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
    )


class NativeLinears:
    """The kernels of one library, and the memory that they compute in, which all layers share."""

    def __init__(self, library: NativeLibrary) -> None:
        function, packed = library.function, ctypes.POINTER(PackedStruct)
        self.multiply = function(
            "quire_linear", (packed, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int32, c_int32, c_void_p), None
        )
        self.pack_rows = function("quire_pack_rows", (packed, c_void_p, c_int32, c_int64, c_int64, c_int64), None)
        self.pack_bias = function("quire_pack_bias", (packed, c_void_p, c_int64, c_int64), None)
        self._data_bytes = function("quire_packed_data_bytes", (c_int32, c_int64, c_int64, c_int32), c_int64)
        self._columns = function("quire_packed_columns", (c_int64, c_int32), c_int64)
        self._scratch_bytes = function("quire_linear_scratch_bytes", (packed, c_int64), c_int64)
        self._memory = WeightMemory()
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def empty(
        self,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        *,
        has_bias: bool = False,
        gate_up: bool = False,
        int8: Int8 | None = None,
    ) -> "NativeWeight":
        """A weight without rows, for inputs and outputs of `dtype`."""
        assert dtype in DTYPES
        assert not gate_up or out_features % 2 == 0
        kind = _kind(dtype, int8)
        columns = self._columns(out_features, gate_up)
        return NativeWeight(
            self,
            PackedStruct(dtype=kind, gate_up=gate_up, out_features=out_features, in_features=in_features),
            dtype,
            data=self._memory.zeros(self._data_bytes(kind, out_features, in_features, gate_up)),
            bias=torch.zeros(columns) if has_bias else None,
            scales=torch.zeros(columns) if int8 is not None else None,
            sums=torch.zeros(columns, dtype=torch.int32) if int8 == "w8a8" else None,
        )

    def scratch(self, packed: PackedStruct, num_rows: int) -> int:
        """Address of what a multiplication of so many rows needs; until the next call."""
        needed = self._scratch_bytes(packed, num_rows) + _ALIGNMENT
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return -(-self._scratch.data_ptr() // _ALIGNMENT) * _ALIGNMENT


class NativeWeight:
    """A weight in the kernels' order. C++ reads it through `packed`, whose memory lives as long as this object."""

    def __init__(
        self,
        linears: NativeLinears,
        packed: PackedStruct,
        dtype: torch.dtype,
        *,
        data: Tensor,
        bias: Tensor | None,
        scales: Tensor | None,
        sums: Tensor | None,
    ) -> None:
        self._linears = linears
        self._tensors = (data, bias, scales, sums)
        self.packed = packed
        self.dtype = dtype
        """Of inputs and outputs."""
        for name, tensor in zip(("data", "bias", "scales", "sums"), self._tensors, strict=True):
            assert tensor is None or tensor.data_ptr() % _ALIGNMENT == 0
            setattr(packed, name, None if tensor is None else tensor.data_ptr())

    @property
    def num_outputs(self) -> int:
        """Columns that come out."""
        return int(self.packed.out_features) // (2 if self.packed.gate_up else 1)

    def layer(self) -> "NativeLinear":
        """What multiplies by it."""
        return NativeLinear(self._linears, self)

    @property
    def size_bytes(self) -> int:
        """Of everything, padding included."""
        return sum(tensor.nbytes for tensor in self._tensors if tensor is not None)

    def pack_rows(self, weight: Tensor, first_row: int = 0) -> None:
        """Fill the rows from `first_row` on with weight [rows, in], of any float dtype; it is not kept."""
        num_rows, in_features = weight.shape
        assert in_features == self.packed.in_features
        assert first_row + num_rows <= self.packed.out_features
        weight = self._readable(weight)
        is_bf16 = weight.dtype == torch.bfloat16
        self._linears.pack_rows(self.packed, weight.data_ptr(), is_bf16, weight.stride(0), first_row, num_rows)

    def pack_bias(self, bias: Tensor, first_row: int = 0) -> None:
        """Likewise for bias [rows]."""
        assert self.packed.bias is not None
        assert first_row + bias.shape[0] <= self.packed.out_features
        # Rounded to the layer's dtype as a plain layer's would be, then kept in float32.
        values = bias.to(self.dtype).float().contiguous()
        self._linears.pack_bias(self.packed, values.data_ptr(), first_row, values.shape[0])

    def _readable(self, weight: Tensor) -> Tensor:
        """Of a type and with strides that the packing code reads: int8 is made from what the checkpoint has."""
        if self.packed.scales is None:
            weight = weight.to(self.dtype)
        elif weight.dtype not in DTYPES:
            weight = weight.float()
        return weight if weight.stride(1) == 1 else weight.contiguous()


class NativeLinear:
    """A loaded layer."""

    def __init__(self, linears: NativeLinears, weight: NativeWeight) -> None:
        self._linears = linears
        self.weight = weight

    def __call__(self, x: Tensor, *, f32_out: bool = False) -> Tensor:
        """x [T, in], any stride over T; the result [T, outputs] is contiguous, in x's dtype or, with `f32_out`, in float32."""
        weight = self.weight
        assert x.dtype == weight.dtype
        assert x.shape[1] == weight.packed.in_features
        if x.stride(1) != 1:
            x = x.contiguous()
        num_rows, num_outputs = x.shape[0], weight.num_outputs
        out = torch.empty(num_rows, num_outputs, dtype=torch.float32 if f32_out else x.dtype)
        self._linears.multiply(
            weight.packed, x.data_ptr(), x.stride(0), num_rows, out.data_ptr(), num_outputs,
            x.dtype == torch.bfloat16, f32_out, self._linears.scratch(weight.packed, num_rows),
        )  # fmt: skip
        return out


def _kind(dtype: torch.dtype, int8: Int8 | None) -> int:
    """`DType` of native/gemm.h."""
    if int8 == "w8a8":
        return _I8
    kinds = (_F32, _BF16) if int8 is None else (_I8_FOR_F32, _I8_FOR_BF16)
    return kinds[dtype == torch.bfloat16]
