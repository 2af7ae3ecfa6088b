"""Composition root of the engine process: `python -m quire_worker.engine`, started by the API process.

Standard input carries the configuration as one JSON line, then stays open for as long as the parent lives.
"""

import gc
import sys
from pathlib import Path

from quire_contract.telemetry import configure_logging
from quire_worker.embedding import Embedder
from quire_worker.engine.config import EngineConfig, decode_engine_config
from quire_worker.engine.fake_model import build_fake_runner
from quire_worker.engine.parent import exit_with_parent
from quire_worker.engine.process import run_engine
from quire_worker.errors import ConfigError
from quire_worker.plan import ModelInfo, Runner
from quire_worker.watchdog import show_stacks_on_crash

CONFIG_EXIT_CODE = 2
_MAX_CONFIG_BYTES = 2**20


def main() -> int:
    """Exit code 0 after Shutdown, 1 after Fatal, 2 for a bad configuration, 3 when the parent went away, 4 when a step hung."""
    show_stacks_on_crash()
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline(_MAX_CONFIG_BYTES)
        try:
            config = decode_engine_config(line)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return CONFIG_EXIT_CODE
        configure_logging(level=config.log_level, as_json=config.log_json, process="engine")
        exit_with_parent(stdin)
        return run_engine(config, build_fake_runner if config.fake else _build_torch_runner)


def _build_torch_runner(config: EngineConfig) -> tuple[Runner | Embedder, ModelInfo]:
    """Imports torch, which takes a second: only here, and only when it is wanted."""
    gc.disable()  # what imports make stays: looking for garbage in it takes an eighth of their time
    from quire_worker.execution.build import build_runner
    from quire_worker.execution.build_embedder import build_embedder
    from quire_worker.execution.options import RunnerOptions
    from quire_worker.models.config import read_config_json
    from quire_worker.models.embedding_config import resolve_task

    gc.enable()
    model_dir = Path(config.model_dir)
    task = resolve_task(read_config_json(model_dir), model_dir, config.task)
    options = RunnerOptions(
        model_dir=model_dir,
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
        ops=config.ops,
        batch_invariant=config.batch_invariant,
        enforce_eager=config.enforce_eager,
        compute_threads=config.compute_threads,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_gpu_blocks_override=config.num_gpu_blocks_override,
    )
    return build_runner(options) if task == "generate" else build_embedder(options, task, config.pooling)


if __name__ == "__main__":
    sys.exit(main())
