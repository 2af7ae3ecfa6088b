"""How far two results are apart, in units of what is allowed.

Allowed is, for float32, 1e-5 of the expected number and 1e-5 absolutely; for narrower types one unit in the last place (the type's epsilon
times the magnitude). Where a result is a sum, `magnitude` holds the sum of the terms' absolute values: cancellation makes the sum small,
not its rounding errors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT32_TOLERANCE = 1e-5
_TINY = {torch.bfloat16: 1e-6, torch.float16: 1e-5}
"""Below it a number is noise whatever its units: results of exactly zero on one side only."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of one tensor."""

    error: float
    """Largest absolute difference; inf where one side is not finite and the other is."""
    units: float
    """Largest difference over what is allowed there: at most 1 passes."""

    @property
    def passes(self) -> bool:
        """Whether every element is within what is allowed."""
        return self.units <= 1.0


def difference(found: Tensor, expected: Tensor, magnitude: Tensor | None = None) -> Difference:
    """Both on the CPU and of one shape and dtype; integers and booleans must be equal. A mismatch of either is an infinite difference."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return Difference(error=float("inf"), units=float("inf"))
    if not expected.numel():
        return Difference(error=0.0, units=0.0)
    if not expected.dtype.is_floating_point:
        wrong = int((found != expected).sum())
        return Difference(error=float(wrong), units=float("inf") if wrong else 0.0)
    wide_found, wide_expected = found.double(), expected.double()
    same = (wide_found == wide_expected) | (wide_found.isnan() & wide_expected.isnan())
    error = torch.where(same, 0.0, (wide_found - wide_expected).abs())
    error = torch.where(error.isnan(), float("inf"), error)
    scale = wide_expected.abs() if magnitude is None else torch.maximum(magnitude.double().abs(), wide_expected.abs())
    units = error / torch.where(scale.isfinite(), _allowed(scale, expected.dtype), 1.0)
    return Difference(error=float(error.max()), units=float(units.max()))


def _allowed(scale: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype in (torch.float32, torch.float64):
        return FLOAT32_TOLERANCE * (1.0 + scale)
    info = torch.finfo(dtype)
    return (info.eps * scale).clamp(min=_TINY.get(dtype, info.smallest_normal * info.eps))
