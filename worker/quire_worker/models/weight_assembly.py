"""The tensors of a projection on their way from the checkpoint into one weight, whichever comes first.

Knows rows and tensors; what they are rows of, the caller says.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire_kernels.cpu.linear import NativeWeight


class Assembly:
    """The tensors of a projection on their way in; let go of as soon as the last one is there."""

    def __init__(
        self,
        *,
        shape: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
        missing: int,
        finish: Callable[[Tensor, Tensor], None],
    ) -> None:
        self._shape = shape
        self._device, self._dtype = device, dtype
        self._weight = self._bias = torch.empty(0)
        self._missing = missing
        self._finish = finish

    def accept_weight(self, tensor: Tensor, first_row: int) -> None:
        self._weight = self._placed(tensor, self._weight, self._shape, first_row)
        self._one_arrived()

    def accept_bias(self, tensor: Tensor, first_row: int) -> None:
        self._bias = self._placed(tensor, self._bias, self._shape[:1], first_row)
        self._one_arrived()

    def _placed(self, tensor: Tensor, whole: Tensor, shape: tuple[int, ...], first_row: int) -> Tensor:
        if tensor.shape == shape:
            return tensor.to(device=self._device, dtype=self._dtype)
        if whole.shape != shape:
            whole = torch.empty(shape, device=self._device, dtype=self._dtype)
        whole[first_row : first_row + tensor.shape[0]].copy_(tensor)
        return whole

    def _one_arrived(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            weight, bias = self._weight, self._bias
            self._weight = self._bias = torch.empty(0)
            self._finish(weight, bias)


class Packing:
    """The same on the way into a packed weight, which takes its memory when the first tensor comes."""

    def __init__(
        self, *, make: Callable[[], NativeWeight], missing: int, finish: Callable[[NativeWeight], None]
    ) -> None:
        self._make = make
        self._weight: NativeWeight | None = None
        self._missing = missing
        self._finish = finish

    def accept_weight(self, tensor: Tensor, first_row: int) -> None:
        self._made().pack_rows(tensor, first_row)
        self._one_arrived()

    def accept_bias(self, tensor: Tensor, first_row: int) -> None:
        self._made().pack_bias(tensor, first_row)
        self._one_arrived()

    def _made(self) -> NativeWeight:
        self._weight = self._weight or self._make()
        return self._weight

    def _one_arrived(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._finish(self._made())
            self._weight = None
