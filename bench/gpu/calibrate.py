"""The machine's own ceilings: how fast it reads, copies, and multiplies bf16 matrices. Rooflines are drawn with these."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.device import time_call
from gpu.roofline import Rates

MATRIX_SHAPES = ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 28672, 4096), (16384, 4096, 14336))


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured. Bytes of a copy count once read and once written."""

    read_bytes_per_s: float
    copy_bytes_per_s: float
    matrix_flops_per_s: float
    matrix_shape: tuple[int, int, int]
    read_by: str

    @property
    def rates(self) -> Rates:
        """For rooflines: the faster of reading and copying is what memory can do."""
        return Rates(
            read_bytes_per_s=max(self.read_bytes_per_s, self.copy_bytes_per_s), flops_per_s=self.matrix_flops_per_s
        )

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def calibrate(device: torch.device, *, size_bytes: int = 4 << 30, with_triton: bool = True) -> Ceilings:
    """About a second on a data-centre GPU. A CPU, in a rehearsal, gets small sizes and torch's sum in place of the kernel."""
    data = torch.empty(size_bytes // 2, dtype=torch.bfloat16, device=device).normal_()
    read_bytes_per_s, read_by = _read_rate(data, device, with_triton=with_triton)
    copy_bytes_per_s = _copy_rate(data[: data.numel() // 2], device)
    del data
    shapes = MATRIX_SHAPES if device.type == "cuda" else ((64, 64, 64),)
    rates = {shape: _matrix_rate(shape, device) for shape in shapes}
    best = max(rates, key=lambda shape: rates[shape])
    return Ceilings(
        read_bytes_per_s=read_bytes_per_s,
        copy_bytes_per_s=copy_bytes_per_s,
        matrix_flops_per_s=rates[best],
        matrix_shape=best,
        read_by=read_by,
    )


def _read_rate(data: Tensor, device: torch.device, *, with_triton: bool) -> tuple[float, str]:
    """The best of the read-reduce kernel over a few launch shapes, and torch's own sum."""
    runs: dict[str, Callable[[], object]] = {"torch.sum": lambda: data.sum(dtype=torch.float32)}
    if with_triton:
        from gpu.read_kernel import read_all

        for block, num_warps in ((4096, 4), (8192, 8), (16384, 8)):
            runs[f"triton, {block} numbers, {num_warps} warps"] = _reader(read_all, data, block, num_warps)
    rates = {name: data.numel() * 2 / time_call(run, device) for name, run in runs.items()}
    best = max(rates, key=lambda name: rates[name])
    return rates[best], best


def _copy_rate(data: Tensor, device: torch.device) -> float:
    other = torch.empty_like(data)
    return 2 * data.numel() * data.itemsize / time_call(lambda: other.copy_(data), device)


def _reader(
    read_all: Callable[[Tensor, int, int], Tensor], data: Tensor, block: int, num_warps: int
) -> Callable[[], object]:
    return lambda: read_all(data, block, num_warps)


def _matrix_rate(shape: tuple[int, int, int], device: torch.device) -> float:
    """On random data: zeros draw less power and run faster than any model does."""
    rows, columns, depth = shape
    x = torch.empty(rows, depth, dtype=torch.bfloat16, device=device).normal_()
    weight = torch.empty(columns, depth, dtype=torch.bfloat16, device=device).normal_()
    seconds = time_call(lambda: torch.nn.functional.linear(x, weight), device, repeats=20, warm_ups=5)
    return 2.0 * rows * columns * depth / seconds
