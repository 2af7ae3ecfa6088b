"""GPUs by their data sheets and models by their shapes, and the step cost that follows from both.

Data sheets: NVIDIA H100 SXM, H200, A100 80GB, L40S, L4, A10G. Attainable shares: what kernels reach of peak bandwidth and of the dense
bf16 rate in practice, and what a step costs besides (launches, sampling); docs/simulate.md says how to replace them by a measurement.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quire_cli.errors import CommandError
from quire_cli.simulate.costs import StepCost, WorkerShape

_GIB = 1024.0**3


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device."""

    memory_bytes: float
    bandwidth: float
    """Bytes per second, peak."""
    flops: float
    """Dense bf16, peak, per second."""
    price_per_hour: float
    """US dollars of a public cloud, on demand, roughly; --price-per-hour says better."""
    link_s: float = 12e-6
    """Of one all-reduce between devices of a worker, beside its bytes."""


GPUS: Mapping[str, Gpu] = {
    "h100": Gpu(memory_bytes=80e9, bandwidth=3.35e12, flops=989e12, price_per_hour=4.0),
    "h200": Gpu(memory_bytes=141e9, bandwidth=4.8e12, flops=989e12, price_per_hour=5.0),
    "a100": Gpu(memory_bytes=80e9, bandwidth=2.04e12, flops=312e12, price_per_hour=2.5),
    "l40s": Gpu(memory_bytes=48e9, bandwidth=0.864e12, flops=362e12, price_per_hour=1.8),
    "l4": Gpu(memory_bytes=24e9, bandwidth=0.3e12, flops=121e12, price_per_hour=0.8),
    "a10g": Gpu(memory_bytes=24e9, bandwidth=0.6e12, flops=125e12, price_per_hour=1.2),
}
BANDWIDTH_SHARE = 0.80
FLOPS_SHARE = 0.60
ATTENTION_SHARE = 0.35
"""Of the dense rate, in a prompt's attention."""
OVERHEAD_S = 1.0e-3
ROW_S = 4e-6
MEMORY_SHARE = 0.9
ACTIVATION_BYTES = 2 * _GIB


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a transformer costs, of its shape."""

    parameters: float
    """All of them: memory."""
    active: float
    """Those that one token uses."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int
    bytes_per_parameter: float = 2.0
    bytes_per_kv: float = 2.0

    @property
    def kv_bytes(self) -> float:
        """Of one token."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_kv


MODELS: Mapping[str, Model] = {
    "llama-3-8b": Model(
        parameters=8.03e9, active=8.03e9, layers=32, heads=32, kv_heads=8, head_dim=128, max_position=8192
    ),
    "llama-3-70b": Model(
        parameters=70.6e9, active=70.6e9, layers=80, heads=64, kv_heads=8, head_dim=128, max_position=8192
    ),
    "qwen3-8b": Model(
        parameters=8.19e9, active=8.19e9, layers=36, heads=32, kv_heads=8, head_dim=128, max_position=40960
    ),
    "qwen3-32b": Model(
        parameters=32.8e9, active=32.8e9, layers=64, heads=64, kv_heads=8, head_dim=128, max_position=40960
    ),
    "qwen3-30b-a3b": Model(
        parameters=30.5e9, active=3.3e9, layers=48, heads=32, kv_heads=4, head_dim=128, max_position=40960
    ),
    "mistral-7b": Model(
        parameters=7.24e9, active=7.24e9, layers=32, heads=32, kv_heads=8, head_dim=128, max_position=32768
    ),
}


def find_gpu(name: str) -> Gpu:
    """By name. CommandError naming those there are."""
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise CommandError(f"--gpu: {name} is not known; one of {', '.join(GPUS)}, or give --cost with a measurement")
    return gpu


def find_model(name: str) -> Model:
    """By name, or from the folder or the config.json of a checkpoint. CommandError if it is neither."""
    model = MODELS.get(name.lower())
    if model is not None:
        return model
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise CommandError(
            f"--model: {name} is not known; one of {', '.join(MODELS)}, or a checkpoint's folder or config.json"
        )
    return model_of_checkpoint(path)


def model_of_checkpoint(path: Path) -> Model:
    """Of a config.json, as the worker reads it."""
    from quire_worker.errors import LoadError
    from quire_worker.models.config import parse_model_config

    try:
        raw = msgspec.json.decode(path.read_bytes())
        config = parse_model_config(raw, source=str(path))
    except (LoadError, msgspec.MsgspecError, OSError, TypeError) as error:
        raise CommandError(f"--model: {path}: {error}") from None
    width = config.hidden_size
    attention = width * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    expert = 3 * width * config.intermediate_size
    held = used = expert
    if config.moe is not None:
        expert = 3 * width * config.moe.intermediate_size
        held, used = expert * config.moe.num_experts, expert * config.moe.num_experts_per_token
    tables = config.vocab_size * width * (1 if config.ties_embeddings else 2)
    head = config.vocab_size * width
    size = 1.0 if config.fp8 is not None else {"float32": 4.0}.get(config.dtype or "", 2.0)
    return Model(
        parameters=config.num_layers * (attention + held) + tables,
        active=config.num_layers * (attention + used) + head,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position=config.max_position,
        bytes_per_parameter=size,
    )


def step_cost(model: Model, gpu: Gpu, num_gpus: int) -> StepCost:
    """The roofline of a worker of `num_gpus` devices in tensor parallelism."""
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE * num_gpus
    flops = gpu.flops * num_gpus
    links_s = 2 * model.layers * gpu.link_s if num_gpus > 1 else 0.0
    return StepCost(
        overhead_s=OVERHEAD_S + links_s,
        row_s=ROW_S,
        weights_s=model.parameters * model.bytes_per_parameter / bandwidth,
        token_s=2 * model.active / (flops * FLOPS_SHARE),
        kv_s=model.kv_bytes / bandwidth,
        pair_s=4.0 * model.layers * model.heads * model.head_dim / (flops * ATTENTION_SHARE),
        request_s=0.004,
    )


def worker_shape(model: Model, gpu: Gpu, num_gpus: int, max_num_seqs: int, max_model_len: int | None) -> WorkerShape:
    """What fits beside the weights. CommandError if nothing does."""
    free = gpu.memory_bytes * MEMORY_SHARE * num_gpus - model.parameters * model.bytes_per_parameter - ACTIVATION_BYTES
    blocks = int(free / (16 * model.kv_bytes))
    if blocks < 64:
        need = model.parameters * model.bytes_per_parameter / 1e9
        raise CommandError(
            f"--gpu: the model's {need:.0f} GB of weights leave no memory for KV on {num_gpus} of this GPU; "
            "give --gpus-per-worker more, or a larger GPU"
        )
    longest = min(max_model_len or model.max_position, blocks * 16 - 16)
    return WorkerShape(kv_blocks=blocks, max_num_seqs=max_num_seqs, max_model_len=longest, max_num_batched_tokens=2048)
