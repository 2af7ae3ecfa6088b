"""What a runner is built from, as values. Torch-free, so that whoever builds it needs no torch to say what it wants."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """One model on one device. Lengths are in tokens unless a unit says otherwise."""

    model_dir: Path
    """Folder of a Hugging Face checkpoint."""
    device: str = "auto"
    """auto (cuda if there is one) | cpu | cuda."""
    dtype: str = "auto"
    """auto (the checkpoint's; bfloat16 on a CPU if that is float16) | float32 | bfloat16 | float16."""
    quantization: str = "none"
    """none | int8, int8-weight-only (on a CPU) | fp8 (on a GPU): weights per output and, but for int8-weight-only, activations per token,
    of all projections but the output head."""
    kv_cache_dtype: str = "auto"
    """auto (dtype) | fp8 (E4M3, on a GPU)."""
    ops: str = "auto"
    """auto (triton on cuda, cpu on a CPU) | reference | cpu | triton."""
    batch_invariant: bool = False
    """On a GPU, logits that do not depend on the rows beside one, on chunks or on the cache, at some cost; on a CPU none do."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    is_resident: bool | None = None
    """Rows live on the device, which derives each step's inputs. None: on a GPU. True on a CPU is a GPU's road without one, for tests."""
    compute_threads: int | None = None
    """Threads that compute on a CPU. None: the cores this process may use."""
    max_model_len: int | None = None
    """Prompt + output at most. None: the checkpoint's, reduced to what the KV pool holds."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    """A multiple of 16."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory for weights, activations and KV together."""
    kv_cache_memory_bytes: int | None = None
    """Overrides gpu_memory_utilization."""
    num_gpu_blocks_override: int | None = None
    """Physical blocks, the null block included. Overrides both of the above."""
