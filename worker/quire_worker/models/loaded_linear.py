"""Projections and weights that are there as objects while a model is built, and get their numbers when the checkpoint is read."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quire_kernels.cpu.linear import NativeLinear, NativeWeight
from quire_worker.models.fp8_linear import Fp8Linear
from quire_worker.models.fp8_rows import Fp8Form, Fp8Rows, Rows


class Linear(Protocol):
    """A loaded projection."""

    def __call__(self, x: Tensor) -> Tensor: ...


class LoadedLinear:
    """A projection that gets its weight later. Calling it before is an error."""

    def __init__(self, form: Fp8Form | None = None) -> None:
        self.form = form
        """How it reads its input; None: as floats."""
        self._run: Linear | Fp8Linear | None = None

    def set(self, run: Linear | Fp8Linear) -> None:
        self._run = run

    @property
    def native(self) -> NativeWeight | None:
        """The packed weight, for C++ that runs more than this layer; None if torch multiplies."""
        return self._run.weight if isinstance(self._run, NativeLinear) else None

    def __call__(self, x: Rows) -> Tensor:
        assert self._run is not None, "the weights are not loaded yet"
        if isinstance(x, Fp8Rows):
            assert isinstance(self._run, Fp8Linear), "quantised for a projection that does not read FP8"
            return self._run(x)
        return self._run(x)


class GatedLinear:
    """A projection of gate and up, and silu of the one times the other."""

    def __init__(self, product: LoadedLinear, silu_mul: Callable[[Tensor], Rows] | None) -> None:
        """silu_mul: None: the product is of it already."""
        self._product = product
        self._silu_mul = silu_mul

    @property
    def form(self) -> Fp8Form | None:
        """As LoadedLinear's."""
        return self._product.form

    @property
    def native(self) -> NativeWeight | None:
        """As LoadedLinear's."""
        return self._product.native

    def __call__(self, x: Rows) -> Rows:
        product = self._product(x)
        return product if self._silu_mul is None else self._silu_mul(product)


class LoadedFp8Weight:
    """An FP8 weight and its scales that come later."""

    def __init__(self) -> None:
        self.values = self.scales = torch.empty(0)

    def set(self, values: Tensor, scales: Tensor) -> None:
        self.values, self.scales = values, scales


class LoadedWeight:
    """A weight that comes later."""

    def __init__(self) -> None:
        self.tensor = torch.empty(0)

    def set(self, tensor: Tensor) -> None:
        self.tensor = tensor
