"""A linear layer in FP8 (W8A8): its weight is FP8 with scales, its input is quantised anew at each step.

    x       [T, in]   bfloat16 on a GPU, any stride over T; or quantised already, in the layer's form (fp8_rows.py)
    out     [T, out]  x's dtype, or that of what was quantised

Scales of the weight are by output, those of the input by token; or by blocks of 128 x 128 and by 128 numbers of a token. See
quire_kernels.quantize_fp8 and quire_kernels.matmul_fp8.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire_kernels.matmul_fp8 import SCALE_BLOCK
from quire_kernels.ops import Ops
from quire_kernels.quantize_fp8 import FP8
from quire_worker.models.fp8_rows import Fp8Form, Fp8Rows, Rows
from quire_worker.models.fp8_weights import num_blocks

_MULTIPLE = 16
"""cuBLASLt multiplies FP8 matrices whose rows are multiples of 16 bytes."""


def can_be_fp8(in_features: int, out_features: list[int], *, is_blocks: bool) -> bool:
    """Whether a projection of parts with these outputs can be one FP8 layer: each part must begin at a block of its own."""
    if is_blocks:
        return in_features % SCALE_BLOCK == 0 and all(size % SCALE_BLOCK == 0 for size in out_features[:-1])
    return in_features % _MULTIPLE == 0 and sum(out_features) % _MULTIPLE == 0


def fp8_form(*, is_blocks: bool) -> Fp8Form:
    """How a layer with such scales reads its input."""
    return Fp8Form(group=SCALE_BLOCK if is_blocks else None)


class Fp8Linear:
    """Computes where its weight is."""

    def __init__(self, ops: Ops, values: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """`scales` [out], or by blocks of 128 x 128."""
        is_blocks = scales.dim() == 2
        self._quantize = ops.quantize_fp8
        self._matmul = ops.matmul_fp8_blocks if is_blocks else ops.matmul_fp8
        self._group = fp8_form(is_blocks=is_blocks).group
        self._values, self._scales, self._bias = values, scales, bias

    def __call__(self, x: Rows) -> Tensor:
        rows = x if isinstance(x, Fp8Rows) else Fp8Rows(*self._quantize(x, self._group), x.dtype)
        out = self._matmul(rows.values, rows.scales, self._values, self._scales, rows.dtype)
        return out if self._bias is None else out.add_(self._bias)


class Fp8Assembly:
    """The parts of an FP8 projection on their way in; let go of as soon as the last one is there."""

    def __init__(
        self,
        *,
        ops: Ops,
        shape: tuple[int, int],
        is_blocks: bool,
        has_bias: bool,
        device: torch.device,
        dtype: torch.dtype,
        missing: int,
        finish: Callable[[Tensor, Tensor, Tensor | None], None],
    ) -> None:
        """`dtype`: the bias's. `missing`: tensors to come, a weight and its scales counted as one. `finish(values, scales, bias)`."""
        self._ops, self._shape, self._is_blocks, self._has_bias = ops, shape, is_blocks, has_bias
        self._device, self._dtype = device, dtype
        self._values = self._scales = self._bias = torch.empty(0)
        self._missing = missing
        self._finish = finish

    def accept_fp8(self, values: Tensor, scales: Tensor, first_row: int) -> None:
        """A part that is FP8 already."""
        self._take_memory()
        self._values[first_row : first_row + values.shape[0]].copy_(values)
        first = first_row // SCALE_BLOCK if self._is_blocks else first_row
        self._scales[first : first + scales.shape[0]].copy_(scales)
        self._one_arrived()

    def accept_weight(self, tensor: Tensor, first_row: int) -> None:
        """A part in floats, which gets a scale for each output."""
        values, scales = self._ops.quantize_fp8(tensor.to(self._device))
        self.accept_fp8(values, scales[:, 0], first_row)

    def accept_bias(self, tensor: Tensor, first_row: int) -> None:
        self._take_memory()
        self._bias[first_row : first_row + tensor.shape[0]].copy_(tensor)
        self._one_arrived()

    def _take_memory(self) -> None:
        if self._values.shape != self._shape:
            out_features, in_features = self._shape
            scales = (num_blocks(out_features), num_blocks(in_features)) if self._is_blocks else (out_features,)
            self._values = torch.empty(self._shape, dtype=FP8, device=self._device)
            self._scales = torch.empty(scales, dtype=torch.float32, device=self._device)
            self._bias = torch.empty(out_features if self._has_bias else 0, dtype=self._dtype, device=self._device)

    def _one_arrived(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            values, scales, bias = self._values, self._scales, self._bias if self._has_bias else None
            self._values = self._scales = self._bias = torch.empty(0)
            self._finish(values, scales, bias)
