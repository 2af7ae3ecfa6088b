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
    fp8_obstacle,
    resolve_device,
    resolve_dtype,
    resolve_kv_dtype,
    resolve_ops,
    resolve_quantization,
    resolve_threads,
)
from quire_worker.execution.device_steps import DeviceSteps
from quire_worker.execution.dormancy import DeviceDormancy
from quire_worker.execution.gpu_memory import gpu_free_bytes
from quire_worker.execution.graphs import CudaRecorder, DecodeGraphs, Recorder, table_widths
from quire_worker.execution.host_steps import HostSteps
from quire_worker.execution.kv_memory import (
    KVShape,
    decide_num_blocks,
    fit_max_model_len,
    host_free_bytes,
    kv_shape,
)
from quire_worker.execution.options import RunnerOptions
from quire_worker.execution.rows import SURPLUS_TOKENS, DeviceRows, HostRows, RowsShape
from quire_worker.execution.runner import TorchRunner
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.execution.trial import run_plan_of
from quire_worker.models.config import ModelConfig, load_model_config
from quire_worker.models.decoder import Decoder
from quire_worker.models.fp8_weights import find_stored_fp8
from quire_worker.models.kv_groups import KVLayout, decide_kv_layout
from quire_worker.models.linear import LinearFactory, Quantization
from quire_worker.models.safetensors_reader import Checkpoint, open_checkpoint
from quire_worker.models.weight_slots import WeightSlots
from quire_worker.plan import ModelInfo

_log = logging.getLogger(__name__)

_PROMPT_TOKENS = 30
"""Enough for the kernels of prompts, so that they are compiled before the first one comes; with one token more, no multiple of a block."""
_LEAST_RECORDED_TOKENS = 4096
"""Width of the narrowest tables recorded where launches grow with the width, in tokens."""


class PhaseClock:
    """Seconds of each start-up phase, by name: unrounded, as some take less than a millisecond."""

    def __init__(self) -> None:
        self.phases_s: dict[str, float] = {}
        self.began_s: dict[str, float] = {}
        """When each began, by CLOCK_MONOTONIC."""

    def __str__(self) -> str:
        return str({name: round(seconds, 3) for name, seconds in self.phases_s.items()})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        self.began_s[name] = start = time.monotonic()
        yield
        self.phases_s[name] = time.monotonic() - start


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
    kv_dtype: torch.dtype
    computes_fp8: bool
    """Whether weights that are FP8 in the checkpoint stay so."""


def build_runner(
    options: RunnerOptions,
    open_weights: Callable[[Path], Checkpoint] = open_checkpoint,
    open_recorder: Callable[[], Recorder] | None = None,
) -> tuple[TorchRunner, ModelInfo]:
    """A runner ready for its first plan. Raises LoadError with the file or flag at fault and the fix.

    `open_weights` finds the tensors of the model's folder; benchmarks make theirs on the device instead. `open_recorder`
    makes what records decode steps; None: CUDA graphs, on a GPU.
    """
    clock = PhaseClock()
    with clock.phase("config"):
        config = load_model_config(options.model_dir)
        checkpoint = open_weights(options.model_dir)
        target = _target(options, config, checkpoint)
        layout = decide_kv_layout(config.windows)
    shape = kv_shape(config, layout, options.block_size, target.kv_dtype)
    with clock.phase("weights"):
        model = _load_model(options, config, checkpoint, target, layout)
    with clock.phase("profile"):
        free_bytes = _free_bytes(options, config, target, shape, model, open_recorder)
    with clock.phase("kv_cache"):
        num_blocks = decide_num_blocks(shape, options, free_bytes, is_gpu=target.device.type == "cuda")
        max_model_len = fit_max_model_len(options, config.max_position, num_blocks, shape)
        recorder = _recorder(options, target.device, open_recorder)
        runner = _make_runner(options, config, target, shape, model, num_blocks, max_model_len, recorder)
    with clock.phase("warm_up"):
        runner.prepare()
        for num_tokens in (2, _PROMPT_TOKENS):
            if num_tokens < max_model_len and num_tokens // shape.block_size + 2 <= num_blocks:
                run_plan_of(runner, shape, num_rows=1, num_tokens=num_tokens)
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
        weights_read_bytes=checkpoint.size_bytes,
        weights_began_s=clock.began_s["weights"],
    )
    _log_ready(options, config, target, info, clock)
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
        ops=load_ops(
            ops_name,
            batch_invariant=options.batch_invariant,
            native_kv=fits_native_attention(dtype, config.head_dim, options.block_size),
        ),
        library=library,
        num_threads=num_threads,
        quantization=resolve_quantization(
            options.quantization,
            device,
            dtype,
            ops_name,
            has_library=library is not None,
            is_stored_fp8=config.fp8 is not None,
        ),
        kv_dtype=resolve_kv_dtype(options.kv_cache_dtype, device, dtype, ops_name),
        computes_fp8=fp8_obstacle(device, dtype, ops_name) is None,
    )


def _load_model(
    options: RunnerOptions, config: ModelConfig, checkpoint: Checkpoint, target: _Target, layout: KVLayout
) -> Decoder:
    slots = WeightSlots()
    longest = min(config.max_position, options.max_model_len or config.max_position)
    linears = LinearFactory(
        slots,
        target.device,
        target.dtype,
        library=target.library,
        quantization=target.quantization,
        stored_fp8=find_stored_fp8(config.fp8, checkpoint),
        fp8_ops=target.ops if target.computes_fp8 else None,
        product=target.ops.linear if options.batch_invariant and target.ops.name == "triton" else None,
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
    _log_quantization(target, linears)
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
    recorder: Recorder | None,
) -> TorchRunner:
    kv_cache = shape.allocate(num_blocks, target.device)
    model.bind_kv_cache(kv_cache)
    is_resident = target.device.type != "cpu" if options.is_resident is None else options.is_resident
    rows_shape = RowsShape(
        num_rows=options.max_num_seqs,
        max_model_len=max_model_len,
        block_size=shape.block_size,
        num_groups=shape.num_groups,
    )
    params = SamplingRows(options.max_num_seqs, config.vocab_size, target.device, on_host=not is_resident)
    if not is_resident:
        host_rows = HostRows(rows_shape)
        host_steps = HostSteps(model=model, kv_cache=kv_cache, rows=host_rows, params=params, ops=target.ops)
        return TorchRunner(steps=host_steps, kv_cache=kv_cache, rows=host_rows, params=params, ops=target.ops)
    graphs = None
    if recorder is not None:
        # With fixed splits, how many programs attention launches grows with the width of the tables.
        first = _LEAST_RECORDED_TOKENS // shape.block_size if options.batch_invariant else None
        widths = table_widths(rows_shape.num_blocks, first)
        graphs = DecodeGraphs(recorder, max_rows=options.max_num_seqs, widths=widths)
    rows = DeviceRows(rows_shape, target.device, target.ops.append_tokens)
    steps = DeviceSteps(model=model, rows=rows, params=params, ops=target.ops, graphs=graphs)
    # Rows that are resident on a CPU are a GPU's without one, whose KV pool is the host's.
    dormancy = DeviceDormancy(model=model, kv_cache=kv_cache, steps=steps) if target.device.type == "cuda" else None
    return TorchRunner(steps=steps, kv_cache=kv_cache, rows=rows, params=params, ops=target.ops, dormancy=dormancy)


def _recorder(
    options: RunnerOptions, device: torch.device, open_recorder: Callable[[], Recorder] | None
) -> Recorder | None:
    if options.enforce_eager:
        return None
    if open_recorder is not None:
        return open_recorder()
    return CudaRecorder() if device.type == "cuda" else None


def _free_bytes(
    options: RunnerOptions,
    config: ModelConfig,
    target: _Target,
    shape: KVShape,
    model: Decoder,
    open_recorder: Callable[[], Recorder] | None,
) -> int:
    """What the KV pool may be taken from: on a GPU what its share leaves after a step as large as any, on a CPU what the host has free."""
    if target.device.type == "cpu":
        return host_free_bytes()
    num_rows = min(options.max_num_seqs, options.max_num_batched_tokens)
    per_row = options.max_num_batched_tokens // num_rows
    trial_blocks = 2 + per_row // shape.block_size
    longest = min(config.max_position, options.max_model_len or config.max_position)

    def make(recorder: Recorder | None) -> TorchRunner:
        return _make_runner(options, config, target, shape, model, trial_blocks, longest, recorder)

    def free_cache() -> None:
        model.bind_kv_cache(shape.allocate(1, target.device))

    return gpu_free_bytes(
        make=make,
        try_largest=lambda runner: run_plan_of(runner, shape, num_rows=num_rows, num_tokens=per_row),
        release=free_cache,
        recorder=_recorder(options, target.device, open_recorder),
        share=options.gpu_memory_utilization,
    )


def _log_quantization(target: _Target, linears: LinearFactory) -> None:
    """What is not as the checkpoint or the flag says."""
    if linears.dequantised:
        _log.warning(
            "fp8 layers=%d of the checkpoint are dequantised to %s, first=%s: %s",
            len(linears.dequantised),
            target.dtype,
            linears.dequantised[0],
            "no FP8 kernel takes their shapes" if target.computes_fp8 else "needs a GPU with FP8, and bfloat16",
        )
    if linears.left_in_floats:
        _log.warning(
            "quantization=fp8 leaves layers=%d of experts in %s, first=%s: no FP8 kernel takes their shapes",
            len(linears.left_in_floats),
            target.dtype,
            linears.left_in_floats[0],
        )


def _log_ready(
    options: RunnerOptions, config: ModelConfig, target: _Target, info: ModelInfo, clock: PhaseClock
) -> None:
    if options.max_model_len is None and info.max_model_len < config.max_position:
        _log.warning(
            "max_model_len=%d reduced from the model's %d: the KV cache holds no more; raise --kv-cache-memory-bytes "
            "or --gpu-memory-utilization for longer sequences",
            info.max_model_len,
            config.max_position,
        )
    _log.info(
        "model ready architecture=%s parameters=%d device=%s dtype=%s quantization=%s kv_dtype=%s ops=%s threads=%d blocks=%d "
        "block_size=%d kv_bytes=%d max_model_len=%d phases_s=%s",
        config.architecture,
        info.num_parameters,
        info.device,
        info.dtype,
        target.quantization,
        target.kv_dtype,
        target.ops.name,
        target.num_threads,
        info.num_blocks,
        info.block_size,
        info.kv_size_bytes,
        info.max_model_len,
        clock,
    )
