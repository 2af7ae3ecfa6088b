"""What a check of one operation is, and how its result is judged.

A case makes its inputs twice from one seed, on the device and on the CPU, runs the operation by the device's ops and by the reference on
the CPU, and compares. Inputs are made in place, not copied over, so that strides stay odd.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.compare import Difference, difference
from quire_kernels.ops import Ops

Inputs = dict[str, Any]
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation on inputs of one shape."""

    op: str
    """A field of Ops."""
    name: str
    make: Callable[[torch.device], Inputs]
    run: Callable[[Ops, Inputs], list[Tensor]]
    """The tensors that the operation returned or changed."""
    magnitude: Callable[[Inputs], list[Tensor]] | None = None
    """From CPU inputs: the sums of the terms' absolute values, parallel to `run`'s tensors; see compare.py."""
    judge: Callable[[Inputs, list[Tensor], list[Tensor]], Difference] | None = None
    """(CPU inputs, found, expected), where equality is not what is asked for."""
    is_small: bool = False
    """Quick through Triton's interpreter."""
    group: str = ""
    """Cases of one group run in one process, one after the other; the operation, if empty."""

    @property
    def shard(self) -> str:
        """The process it runs in."""
        return self.group or self.op


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one case."""

    op: str
    name: str
    passes: bool
    error: float | None
    """Largest absolute difference; None if the case raised."""
    units: float | None
    """Largest difference over what is allowed."""
    seconds: float
    message: str = ""


def examine(case: Case, device_ops: Ops, reference: Ops, device: torch.device) -> Verdict:
    """Run the case. What it raises becomes its verdict; a device that failed for good raises for every later case as well."""
    start = time.perf_counter()
    if getattr(device_ops, case.op) is None and device_ops.name != "triton":
        # Backends of a CPU may leave an operation out; this one is what must be complete.
        return Verdict(
            op=case.op, name=case.name, passes=True, error=None, units=None, seconds=0.0, message="not in this backend"
        )
    try:
        with torch.inference_mode():
            found = [tensor.cpu() for tensor in case.run(device_ops, case.make(device))]
            inputs = case.make(CPU)
            magnitudes = None if case.magnitude is None else case.magnitude(inputs)
            expected = case.run(reference, inputs)
            worst = _judged(case, found, expected, magnitudes)
    except Exception as error:  # noqa: BLE001 - the kernel's failure is the finding
        seconds = time.perf_counter() - start
        return Verdict(
            op=case.op, name=case.name, passes=False, error=None, units=None, seconds=seconds, message=_short(error)
        )
    return Verdict(
        op=case.op,
        name=case.name,
        passes=worst.passes,
        error=worst.error,
        units=worst.units,
        seconds=time.perf_counter() - start,
    )


def _judged(case: Case, found: list[Tensor], expected: list[Tensor], magnitudes: list[Tensor] | None) -> Difference:
    if case.judge is not None:
        return case.judge(case.make(CPU), found, expected)
    sums: list[Tensor | None] = [None] * len(expected) if magnitudes is None else [*magnitudes]
    differences = [difference(f, e, m) for f, e, m in zip(found, expected, sums, strict=True)]
    return max(differences, key=lambda found: found.units)


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[:2] + lines[-1:] if len(lines) > 3 else lines)}"[:600]


def seeded(*words: object) -> torch.Generator:
    """A generator on the CPU; equal words, equal numbers."""
    return torch.Generator().manual_seed(sum(ord(c) * (i + 1) for i, c in enumerate(repr(words))))


def dtype_name(dtype: torch.dtype) -> str:
    """bf16, f32, ..."""
    names = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}
    name = str(dtype).removeprefix("torch.")
    return names.get(name, name)
