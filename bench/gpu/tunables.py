"""Which entries of the launch table are tuned: their candidates, what they are timed on, and a small call that compiles them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from gpu.workloads import (
    Heads,
    Workload,
    copies_of_blocks,
    decode_attention,
    logprobs,
    penalties,
    prefill_attention,
    sample,
    silu,
)
from quire_kernels import launch_configs

Params = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """One kernel and shape class."""

    kernel: str
    shape_class: str
    candidates: tuple[Params, ...]
    workloads: tuple[Workload, ...]
    """What counts, equally."""
    small: tuple[Workload, ...]
    """Calls on little data that compile what the workloads launch."""

    @property
    def name(self) -> str:
        """For reports and --only."""
        return f"{self.kernel} {self.shape_class}"


def grid(**choices: Sequence[int]) -> tuple[Params, ...]:
    """Every combination."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


HEAD_SHAPES = {64: (32, 8), 128: (32, 8), 256: (16, 4)}
"""Heads and KV heads of the models that have this head dim."""


def tunables(*, tiny: bool = False) -> Iterator[Tunable]:
    """All of them, what matters most first; `tiny`: on sizes for a rehearsal on a CPU, with two candidates each."""
    found = [*_attention(128), *_rows(), *_attention(64), *_attention(256)]
    yield from (_rehearsed(tunable) for tunable in found) if tiny else found


def _attention(dim: int) -> Iterator[Tunable]:
    heads, kv_heads = HEAD_SHAPES[dim]
    shape, shape_class = Heads(heads=heads, kv_heads=kv_heads, dim=dim), launch_configs.attention_class(dim, 2)
    yield Tunable(
        kernel="prefill",
        shape_class=shape_class,
        candidates=grid(block_m=(64, 128), block_n=(32, 64, 128), num_warps=(4, 8), num_stages=(2, 3, 4, 5)),
        workloads=(
            prefill_attention(shape, 2048),
            prefill_attention(shape, 8192),
            prefill_attention(shape, 512, rows=8),
        ),
        small=(prefill_attention(shape, 256),),
    )
    yield Tunable(
        kernel="decode",
        shape_class=shape_class,
        candidates=grid(block_m=(16,), block_n=(16, 32, 64, 128), num_warps=(2, 4, 8), num_stages=(2, 3, 4, 5)),
        workloads=(
            decode_attention(shape, 1, 1024),
            decode_attention(shape, 64, 1024),
            decode_attention(shape, 8, 8192),
        ),
        small=(decode_attention(shape, 2, 256),),
    )


def _rows() -> Iterator[Tunable]:
    rows = grid(block=(512, 1024, 2048, 4096), num_warps=(2, 4, 8))
    wide = grid(block=(1024, 2048, 4096, 8192, 16384), num_warps=(4, 8, 16))
    llama = Heads(heads=32, kv_heads=8, dim=128)
    yield _streaming("silu_mul", rows, [silu(t, 14_336) for t in (1, 64, 2048)], [silu(3, 96)])
    sampled = [sample(1, 128_256), sample(64, 128_256), logprobs(8, 128_256)]
    # Triton compiles once more for one row, and where the number of rows divides by 16.
    small = [sample(1, 9008), sample(2, 9008), sample(16, 9008), logprobs(8, 9008)]
    yield _streaming("vocabulary", wide, sampled, small)
    yield _streaming("penalties", rows, [penalties(64, 128_256)], [penalties(16, 3008)])
    copied = [copies_of_blocks(llama, 32, 8), copies_of_blocks(llama, 32, 64)]
    yield _streaming("copy_blocks", wide, copied, [copies_of_blocks(llama, 1, 2)])


def _streaming(
    kernel: str, candidates: tuple[Params, ...], workloads: list[Workload], small: list[Workload]
) -> Tunable:
    return Tunable(
        kernel=kernel,
        shape_class=launch_configs.ALL_SHAPES,
        candidates=candidates,
        workloads=tuple(workloads),
        small=tuple(small),
    )


def _rehearsed(tunable: Tunable) -> Tunable:
    return replace(tunable, candidates=tunable.candidates[:2], workloads=tunable.small[:1])


def entry_workload(kernel: str, shape_class: str) -> Workload | None:
    """A small call that compiles an entry of the table, whatever its class; None for a kernel that is not known here."""
    if kernel in ("prefill", "decode"):
        dim, size = (int(part[1:]) for part in shape_class.split("_"))
        dtype = {2: torch.bfloat16, 4: torch.float32}[size]
        shape = Heads(heads=8, kv_heads=2, dim=dim, dtype=dtype)
        return decode_attention(shape, 2, 64) if kernel == "decode" else prefill_attention(shape, 64)
    found = {
        "silu_mul": silu(3, 96),
        "vocabulary": sample(2, 9001),
        "penalties": penalties(2, 3000),
        "copy_blocks": copies_of_blocks(Heads(heads=4, kv_heads=2, dim=128), 1, 2),
    }
    return found.get(kernel)
