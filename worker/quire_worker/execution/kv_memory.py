"""How large the KV pool becomes, and how long a sequence it then holds.

    --num-gpu-blocks-override  >  --kv-cache-memory-bytes  >  GPU: what --gpu-memory-utilization leaves;  CPU: a modest share of free memory

Decides on numbers and makes the tensor; what lies in it is the kernels' and the block manager's business.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quire_worker.errors import LoadError
from quire_worker.execution.options import RunnerOptions
from quire_worker.models.config import ModelConfig
from quire_worker.models.kv_groups import KVLayout

CPU_SHARE = 0.25
"""Of the free memory, at most CPU_MAX_BYTES: a process without a GPU shares its machine."""
CPU_MAX_BYTES = 4 * 2**30
CPU_MAX_BLOCKS = 2**16
"""A small model's blocks are small; a million tokens of cache are enough where nobody asked for more."""

PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class KVShape:
    """Of the whole cache, but for the number of blocks."""

    layers_per_block: int
    num_groups: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """One block: keys and values of the layers that share it."""
        slots = self.layers_per_block * 2 * self.num_kv_heads * self.block_size
        return slots * self.head_dim * self.dtype.itemsize

    def allocate(self, num_blocks: int, device: torch.device) -> Tensor:
        """[N blocks, layers, 2 (K, V), kv heads, slots, dim], all zeros.

        Attention multiplies stale slots by exactly 0, so they must be finite."""
        shape = (num_blocks, self.layers_per_block, 2, self.num_kv_heads, self.block_size, self.head_dim)
        if device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=device)
        # numpy asks the system for zero pages, which cost nothing until they are written; torch would write them all.
        size = math.prod(shape) * self.dtype.itemsize
        memory = torch.from_numpy(np.zeros(size + PAGE_BYTES, np.uint8))
        # numpy's own start lies inside a cache line: every vector read would then touch two (a third of decode attention's speed).
        start = -memory.data_ptr() % PAGE_BYTES
        return memory[start : start + size].view(self.dtype).view(shape)


def kv_shape(config: ModelConfig, layout: KVLayout, block_size: int, dtype: torch.dtype) -> KVShape:
    """The cache of a model."""
    return KVShape(
        layers_per_block=layout.layers_per_block,
        num_groups=len(layout.groups),
        num_kv_heads=config.num_kv_heads,
        block_size=block_size,
        head_dim=config.head_dim,
        dtype=dtype,
    )


def decide_num_blocks(shape: KVShape, options: RunnerOptions, free_bytes: int, *, is_gpu: bool) -> int:
    """Physical blocks, the null block included. `free_bytes`: on a GPU what utilisation leaves, on a CPU what the machine has free.

    Raises LoadError naming the flag when not even one block fits beside the null block.
    """
    if options.num_gpu_blocks_override is not None:
        return options.num_gpu_blocks_override
    if options.kv_cache_memory_bytes is not None:
        size, source = options.kv_cache_memory_bytes, f"--kv-cache-memory-bytes {options.kv_cache_memory_bytes}"
    elif is_gpu:
        size = free_bytes
        source = f"--gpu-memory-utilization {options.gpu_memory_utilization}, less weights and activations,"
    else:
        most = CPU_MAX_BLOCKS * shape.block_bytes
        size = min(int(free_bytes * CPU_SHARE), CPU_MAX_BYTES, most)
        source = f"{CPU_SHARE:.0%} of the {free_bytes} bytes of free memory"
    num_blocks = size // shape.block_bytes
    if num_blocks < 1 + shape.num_groups:
        raise LoadError(
            f"no room for the KV cache: {source} leaves {max(size, 0)} bytes, and {1 + shape.num_groups} blocks of {shape.block_bytes} "
            "bytes are the least; raise it, or set --kv-cache-memory-bytes"
        )
    return num_blocks


def fit_max_model_len(options: RunnerOptions, model_len: int, num_blocks: int, shape: KVShape) -> int:
    """The longest sequence that is served: the model's, or as much of it as one sequence finds room for in an empty pool.

    Raises LoadError naming both numbers and the flags when the user asked for more than that, or for more than the model has.
    """
    fits = (num_blocks - 1) // shape.num_groups * shape.block_size
    wanted = options.max_model_len
    if wanted is not None and wanted > model_len:
        raise LoadError(
            f"--max-model-len {wanted} exceeds the model's max_position_embeddings ({model_len}): "
            "give at most that, or add a rope_scaling that the checkpoint was made for"
        )
    if wanted is not None and wanted > fits:
        raise LoadError(
            f"--max-model-len {wanted} does not fit: the KV cache of {num_blocks} blocks holds {fits} tokens; lower it to {fits}, "
            "or raise --gpu-memory-utilization, --kv-cache-memory-bytes or --num-gpu-blocks-override"
        )
    return min(wanted or model_len, fits)


def host_free_bytes(root: Path = Path("/")) -> int:
    """Memory this process may still take: the machine's, or its cgroup's if that is less. `root` is the file system's, for tests."""
    free = [_meminfo_available(root / "proc/meminfo")]
    cgroup = root / "sys/fs/cgroup"
    pairs = (
        (cgroup / "memory.max", cgroup / "memory.current"),
        (cgroup / "memory/memory.limit_in_bytes", cgroup / "memory/memory.usage_in_bytes"),
    )
    for limit_file, usage_file in pairs:
        limit, usage = _number(limit_file), _number(usage_file)
        if limit is not None and usage is not None:
            free.append(max(0, limit - usage))
    return min(free)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _meminfo_available(path: Path) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise LoadError(f"{path} does not say MemAvailable: set --kv-cache-memory-bytes")
