"""Rows on their way into FP8 projections: quantised by the operation before, in the pass that makes them.

    values  [T, in] float8_e4m3fn
    scales  [T, 1] float32, or [T, in / 128]     see quire_kernels.quantize_fp8

A norm, or the activation of an MLP, asks the projection that comes next how it reads its input: as FP8, with a scale for so many numbers,
or as it is. Where an operation feeds something else as well (a mixture's router), nothing is quantised ahead.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.ops import Ops


@dataclass(frozen=True, slots=True)
class Fp8Form:
    """How a projection reads its input."""

    group: int | None
    """Numbers that share a scale; None: all of a token's."""


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Quantised rows."""

    values: Tensor
    scales: Tensor
    dtype: torch.dtype
    """Of what was quantised, and of the product."""


Rows = Tensor | Fp8Rows


class Norm:
    """A norm's weight, once loaded."""

    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor = torch.empty(0)


class NormBefore:
    """The norm before a projection, with the residual's addition before that."""

    def __init__(self, ops: Ops, norm: Norm, eps: float, form: Fp8Form | None) -> None:
        """form: the projection's; None: it takes the norm's result as it is, or others take it as well."""
        self._ops, self._norm, self._eps, self._form = ops, norm, eps, form

    @property
    def weight(self) -> Tensor:
        """[E]"""
        return self._norm.tensor

    def __call__(self, x: Tensor | None, residual: Tensor) -> tuple[Rows, Tensor]:
        """(the normalised residual + x, that sum); x None: the residual alone."""
        weight, eps, form = self._norm.tensor, self._eps, self._form
        if form is None:
            if x is None:
                return self._ops.rms_norm(residual, weight, eps), residual
            return self._ops.rms_norm(x, weight, eps, residual)
        if x is None:
            return Fp8Rows(*self._ops.rms_norm_fp8(residual, weight, eps, None, form.group), residual.dtype), residual
        return Fp8Rows(*self._ops.rms_norm_fp8(x, weight, eps, residual, form.group), x.dtype), residual


def activation_before(ops: Ops, form: Fp8Form | None) -> Callable[[Tensor], Rows]:
    """silu_mul, quantised for the projection that reads its input in this form."""
    if form is None:
        return ops.silu_mul
    silu_mul_fp8, group = ops.silu_mul_fp8, form.group
    return lambda gate_up: Fp8Rows(*silu_mul_fp8(gate_up, group), gate_up.dtype)
