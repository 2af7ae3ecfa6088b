"""Builds a runner: device, weights, KV pool, rows, in that order, timing each phase.

The only part of execution that reads files. Everything that can be wrong with a model folder or a setting is found here and
raised as LoadError before the first request.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from quire_kernels.cpu.linear import DTYPES as NATIVE_DTYPES
from quire_kernels.cpu.native_attention import fits_native_attention
from quire_kernels.cpu.native_library import NativeLibrary, native_library
from quire_kernels.ops import Ops, load_ops
from quire_worker.execution.device import (
    DTYPES,
    resolve_device,
    resolve_dtype,
    resolve_ops,
    resolve_quantization,
    resolve_threads,
)
from quire_worker.execution.kv_memory import (
    KVShape,
    decide_num_blocks,
    fit_max_model_len,
    host_free_bytes,
    kv_shape,
)
from quire_worker.execution.options import RunnerOptions
from quire_worker.execution.rows import SURPLUS_TOKENS, Rows
from quire_worker.execution.runner import TorchRunner
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.execution.trial import run_plan_of
from quire_worker.models.config import ModelConfig, load_model_config
from quire_worker.models.decoder import Decoder
from quire_worker.models.kv_groups import KVLayout, decide_kv_layout
from quire_worker.models.linear import LinearFactory, Quantization
from quire_worker.models.safetensors_reader import Checkpoint, open_checkpoint
from quire_worker.models.weight_slots import WeightSlots
from quire_worker.plan import ModelInfo

_log = logging.getLogger(__name__)


class PhaseClock:
    """Seconds of each start-up phase, by name."""

    def __init__(self) -> None:
        self.phases_s: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter()
        yield
        self.phases_s[name] = round(time.perf_counter() - start, 3)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where and how the model runs."""

    device: torch.device
    dtype: torch.dtype
    ops: Ops
    library: NativeLibrary | None
    """C++ ops, on a CPU that has them."""
    num_threads: int
    """Those that compute, on a CPU."""
    quantization: Quantization


def build_runner(
    options: RunnerOptions, open_weights: Callable[[Path], Checkpoint] = open_checkpoint
) -> tuple[TorchRunner, ModelInfo]:
    """A runner ready for its first plan. Raises LoadError with the file or flag at fault and the fix.

    `open_weights` finds the tensors of the model's folder; benchmarks make theirs on the device instead.
    """
    clock = PhaseClock()
    with clock.phase("config"):
        config = load_model_config(options.model_dir)
        checkpoint = open_weights(options.model_dir)
        target = _target(options, config, checkpoint)
        layout = decide_kv_layout(config.windows)
    shape = kv_shape(config, layout, options.block_size, target.dtype)
    with clock.phase("weights"):
        model = _load_model(options, config, checkpoint, target, layout)
    with clock.phase("profile"):
        free_bytes = _free_bytes(options, config, target, shape, model)
    with clock.phase("kv_cache"):
        num_blocks = decide_num_blocks(shape, options, free_bytes, is_gpu=target.device.type == "cuda")
        max_model_len = fit_max_model_len(options, config.max_position, num_blocks, shape)
        runner = _make_runner(options, config, target, shape, model, num_blocks, max_model_len)
    with clock.phase("warm_up"):
        run_plan_of(runner, shape, num_rows=1, num_tokens=2)
    info = ModelInfo(
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        block_size=options.block_size,
        groups=list(layout.groups),
        device=target.device.type,
        dtype=str(target.dtype).removeprefix("torch."),
        num_parameters=model.num_parameters,
        weights_size_bytes=model.weights_size_bytes,
        kv_size_bytes=num_blocks * shape.block_bytes,
        phases_s=clock.phases_s,
    )
    _log_ready(options, config, target, info)
    return runner, info


def _target(options: RunnerOptions, config: ModelConfig, checkpoint: Checkpoint) -> _Target:
    device = resolve_device(options.device)
    stored = DTYPES[config.dtype] if config.dtype is not None else checkpoint.dtype()
    dtype = resolve_dtype(options.dtype, stored, device)
    if options.dtype == "auto" and dtype != stored:
        _log.warning("dtype chosen=%s checkpoint=%s reason=%s has no fast arithmetic for it", dtype, stored, device)
    ops_name = resolve_ops(options.ops, device)
    library = native_library() if ops_name == "cpu" else None
    num_threads = resolve_threads(options.compute_threads)
    if device.type == "cpu":
        is_native = library is not None and dtype in NATIVE_DTYPES
        # Threads of torch's that wait for work spin on cores that the library's threads compute on.
        torch.set_num_threads(1 if is_native else num_threads)
        if library is not None:
            library.set_num_threads(num_threads)
    return _Target(
        device=device,
        dtype=dtype,
        ops=load_ops(ops_name, native_kv=fits_native_attention(dtype, config.head_dim, options.block_size)),
        library=library,
        num_threads=num_threads,
        quantization=resolve_quantization(options.quantization, device, dtype, library is not None),
    )


def _load_model(
    options: RunnerOptions, config: ModelConfig, checkpoint: Checkpoint, target: _Target, layout: KVLayout
) -> Decoder:
    slots = WeightSlots()
    longest = min(config.max_position, options.max_model_len or config.max_position)
    linears = LinearFactory(
        slots, target.device, target.dtype, library=target.library, quantization=target.quantization
    )
    model = Decoder(
        config,
        ops=target.ops,
        slots=slots,
        places=layout.places,
        device=target.device,
        dtype=target.dtype,
        num_positions=longest + SURPLUS_TOKENS,
        linears=linears,
    )
    slots.load(checkpoint, str(options.model_dir))
    return model


def _make_runner(
    options: RunnerOptions,
    config: ModelConfig,
    target: _Target,
    shape: KVShape,
    model: Decoder,
    num_blocks: int,
    max_model_len: int,
) -> TorchRunner:
    kv_cache = shape.allocate(num_blocks, target.device)
    model.bind_kv_cache(kv_cache)
    rows = Rows(options.max_num_seqs, max_model_len, shape.block_size, shape.num_groups, target.device)
    params = SamplingRows(options.max_num_seqs, config.vocab_size, target.device)
    return TorchRunner(model=model, kv_cache=kv_cache, rows=rows, params=params, ops=target.ops)


def _free_bytes(options: RunnerOptions, config: ModelConfig, target: _Target, shape: KVShape, model: Decoder) -> int:
    """What the KV pool may be taken from: on a GPU what its share leaves after a step as large as any, on a CPU what the host has free."""
    if target.device.type == "cpu":
        return host_free_bytes()
    num_rows = min(options.max_num_seqs, options.max_num_batched_tokens)
    per_row = options.max_num_batched_tokens // num_rows
    trial_blocks = 2 + per_row // shape.block_size
    runner = _make_runner(options, config, target, shape, model, trial_blocks, trial_blocks * shape.block_size)
    torch.cuda.reset_peak_memory_stats()
    run_plan_of(runner, shape, num_rows=num_rows, num_tokens=per_row)
    torch.cuda.synchronize()
    activations = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    runner.close()
    model.bind_kv_cache(shape.allocate(1, target.device))
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    reserve = int(total_bytes * (1 - options.gpu_memory_utilization))
    return free_bytes - activations - reserve


def _log_ready(options: RunnerOptions, config: ModelConfig, target: _Target, info: ModelInfo) -> None:
    if options.max_model_len is None and info.max_model_len < config.max_position:
        _log.warning(
            "max_model_len=%d reduced from the model's %d: the KV cache holds no more; raise --kv-cache-memory-bytes "
            "or --gpu-memory-utilization for longer sequences",
            info.max_model_len,
            config.max_position,
        )
    _log.info(
        "model ready architecture=%s parameters=%d device=%s dtype=%s quantization=%s ops=%s threads=%d blocks=%d "
        "block_size=%d kv_bytes=%d max_model_len=%d phases_s=%s",
        config.architecture,
        info.num_parameters,
        info.device,
        info.dtype,
        target.quantization,
        target.ops.name,
        target.num_threads,
        info.num_blocks,
        info.block_size,
        info.kv_size_bytes,
        info.max_model_len,
        info.phases_s,
    )
