"""FP8 (E4M3) weights on their way from a checkpoint: which layers have them, and numbers and scales brought together.

    values  [out, in] float8_e4m3fn
    scales  [out] float32                                       or, by blocks,  [ceil(out / 128), ceil(in / 128)] float32

What is meant is values * scales. A checkpoint's one scale for all of a tensor becomes one for each output.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.matmul_fp8 import SCALE_BLOCK
from quire_worker.models.quantization_config import Fp8Format
from quire_worker.models.safetensors_reader import Checkpoint
from quire_worker.models.weight_slots import FP8_TYPES, WeightSlots

Shape = tuple[int, int]
_WEIGHT = ".weight"


@dataclass(frozen=True, kw_only=True)
class StoredFp8:
    """The layers that are FP8 in a checkpoint."""

    format: Fp8Format
    layers: frozenset[str]
    """Names, without `.weight`."""

    def declare(self, slots: WeightSlots, layer: str, shape: Shape, accept: Callable[[Tensor, Tensor], None]) -> None:
        """`accept(values, scales)` is called once both are read, in whichever order they lie."""
        pair = _Pair(shape, self.format.is_blocks, accept)
        slots.declare(f"{layer}{_WEIGHT}", shape, pair.accept_values, types=FP8_TYPES)
        first, *others = _scale_shapes(shape, self.format.is_blocks)
        slots.declare(f"{layer}.{self.format.scale_name}", first, pair.accept_scales, other_shapes=tuple(others))


def find_stored_fp8(fp8: Fp8Format | None, checkpoint: Checkpoint) -> StoredFp8 | None:
    """By the types that the files' headers state. None: config.json tells of no FP8."""
    if fp8 is None:
        return None
    names = (name for name, entry in checkpoint.entries.items() if entry.type_name in FP8_TYPES)
    return StoredFp8(
        format=fp8, layers=frozenset(name.removesuffix(_WEIGHT) for name in names if name.endswith(_WEIGHT))
    )


def dequantise(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that are meant, [out, in], rounded to `dtype` once."""
    if scales.dim() == 1:
        return (values.float() * scales[:, None]).to(dtype)
    out = torch.empty(values.shape, dtype=dtype, device=values.device)
    # By rows of blocks: a float32 copy of a whole weight would take four times its memory.
    for row, of_row in enumerate(scales):
        rows = slice(row * SCALE_BLOCK, (row + 1) * SCALE_BLOCK)
        out[rows] = values[rows].float() * of_row.repeat_interleave(SCALE_BLOCK)[: values.shape[1]]
    return out


def num_blocks(size: int) -> int:
    """Of 128 that hold `size` numbers."""
    return -(-size // SCALE_BLOCK)


def _scale_shapes(shape: Shape, is_blocks: bool) -> list[tuple[int, ...]]:
    out_features, in_features = shape
    if is_blocks:
        return [(num_blocks(out_features), num_blocks(in_features))]
    return [(out_features, 1), (out_features,), (1,), (), (1, 1)]


class _Pair:
    """Waits for a weight's numbers and scales."""

    def __init__(self, shape: Shape, is_blocks: bool, accept: Callable[[Tensor, Tensor], None]) -> None:
        self._shape, self._is_blocks, self._accept = shape, is_blocks, accept
        self._values: Tensor | None = None
        self._scales: Tensor | None = None

    def accept_values(self, tensor: Tensor) -> None:
        self._values = tensor
        self._pass_on()

    def accept_scales(self, tensor: Tensor) -> None:
        scales = tensor.float()
        self._scales = scales if self._is_blocks else scales.reshape(-1).expand(self._shape[0])
        self._pass_on()

    def _pass_on(self) -> None:
        values, scales = self._values, self._scales
        if values is not None and scales is not None:
            self._values = self._scales = None
            self._accept(values, scales)
