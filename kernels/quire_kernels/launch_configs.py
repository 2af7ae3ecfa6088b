"""Launch parameters of the Triton kernels: a committed table, so nothing is tuned while serving. Knows no tensors.

The attention entries follow shared memory (227 KiB on an H100) and registers for each head dim; they are starting points that
await measurement on the device.
"""

from dataclasses import dataclass
from typing import Literal

AttentionOp = Literal["prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Of one attention kernel, for one head dim and element size."""

    block_m: int
    """Packed rows (queries times heads of a group) of one program; the decode kernel raises it to the group's size."""
    block_n: int
    """Keys of one tile at most: whole blocks, or part of one."""
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """Of a kernel that streams over rows of numbers."""

    block: int
    num_warps: int


DECODE_SPLIT_LEN = 256
"""Keys of one split of the decode kernel. The same whatever the batch, so a row's sums are always in the same order."""

_ATTENTION: dict[tuple[AttentionOp, int, int], AttentionConfig] = {
    # (op, head dim rounded up to a power of two, bytes per element)
    ("prefill", 32, 2): AttentionConfig(block_m=128, block_n=64, num_warps=4, num_stages=3),
    ("prefill", 64, 2): AttentionConfig(block_m=128, block_n=64, num_warps=4, num_stages=3),
    ("prefill", 128, 2): AttentionConfig(block_m=128, block_n=64, num_warps=8, num_stages=3),
    ("prefill", 256, 2): AttentionConfig(block_m=64, block_n=32, num_warps=8, num_stages=2),
    ("prefill", 32, 4): AttentionConfig(block_m=64, block_n=32, num_warps=4, num_stages=2),
    ("prefill", 64, 4): AttentionConfig(block_m=64, block_n=32, num_warps=4, num_stages=2),
    ("prefill", 128, 4): AttentionConfig(block_m=32, block_n=32, num_warps=4, num_stages=2),
    ("prefill", 256, 4): AttentionConfig(block_m=32, block_n=16, num_warps=8, num_stages=1),
    ("decode", 32, 2): AttentionConfig(block_m=16, block_n=64, num_warps=4, num_stages=3),
    ("decode", 64, 2): AttentionConfig(block_m=16, block_n=64, num_warps=4, num_stages=3),
    ("decode", 128, 2): AttentionConfig(block_m=16, block_n=64, num_warps=4, num_stages=3),
    ("decode", 256, 2): AttentionConfig(block_m=16, block_n=32, num_warps=4, num_stages=3),
    ("decode", 32, 4): AttentionConfig(block_m=16, block_n=64, num_warps=4, num_stages=2),
    ("decode", 64, 4): AttentionConfig(block_m=16, block_n=64, num_warps=4, num_stages=2),
    ("decode", 128, 4): AttentionConfig(block_m=16, block_n=32, num_warps=4, num_stages=2),
    ("decode", 256, 4): AttentionConfig(block_m=16, block_n=16, num_warps=4, num_stages=2),
}

_ROWS: dict[str, RowConfig] = {
    "copy_blocks": RowConfig(block=4096, num_warps=8),
    "silu_mul": RowConfig(block=1024, num_warps=4),
    "vocabulary": RowConfig(block=4096, num_warps=8),
    "penalties": RowConfig(block=1024, num_warps=4),
    "scatter": RowConfig(block=128, num_warps=4),
}


def attention_config(op: AttentionOp, head_dim: int, element_bytes: int) -> AttentionConfig:
    """The entry for a head dim of at most 256. Raises ValueError where the table has none."""
    padded = max(32, 1 << (head_dim - 1).bit_length())
    config = _ATTENTION.get((op, padded, element_bytes))
    if config is None:
        raise ValueError(
            f"no launch parameters for {op} attention with head_dim={head_dim} and {element_bytes}-byte elements"
        )
    return config


def attention_configs() -> dict[tuple[AttentionOp, int, int], AttentionConfig]:
    """Every entry, for tests and tuning."""
    return dict(_ATTENTION)


def row_config(op: str) -> RowConfig:
    """The entry of a streaming kernel."""
    return _ROWS[op]


def warps_for(block: int) -> int:
    """Warps of a kernel whose program holds `block` numbers at once: about 8 numbers a thread, 1 to 16 warps."""
    return max(1, min(16, block // 256))
