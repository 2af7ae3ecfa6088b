"""What the API process tells the engine process: its own configuration, in the engine's terms."""

from typing import Any

from quire_worker.config import WorkerConfig
from quire_worker.engine.config import EngineConfig

_DTYPES = {"half": "float16", "float": "float32"}


def engine_config(config: WorkerConfig, *, inbound_endpoint: str, outbound_endpoint: str) -> EngineConfig:
    """The engine's configuration. Settings that are None here keep the engine's default."""
    values: dict[str, Any] = {
        "dtype": _DTYPES.get(config.dtype, config.dtype),
        "compute_threads": config.compute_threads,
        "seed": config.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_num_queued_tokens": config.max_num_queued_tokens,
        "depth": config.depth,
        "max_prefill_tokens_per_step": config.max_prefill_tokens_per_step,
        "max_rows_per_request": config.max_rows_per_request,
        "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
        "num_gpu_blocks_override": config.num_gpu_blocks_override,
        "events_endpoint": config.kv_events_endpoint,
        "replay_endpoint": config.kv_replay_endpoint,
        "trust_dir": None if config.trust_dir is None else str(config.trust_dir),
    }
    return EngineConfig(
        model_dir=str(config.model),
        served_model_names=list(config.model_names),
        device=config.device,
        quantization=config.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
        ops=config.ops,
        batch_invariant=config.batch_invariant,
        enforce_eager=config.enforce_eager,
        max_num_queued_reqs=config.max_num_queued_reqs,
        scheduling_policy=config.scheduling_policy,
        scheduling_aging_s=config.scheduling_aging_s,
        max_num_partial_prefills=config.max_num_partial_prefills,
        block_size=config.block_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
        enable_prefix_caching=config.enable_prefix_caching,
        inbound_endpoint=inbound_endpoint,
        outbound_endpoint=outbound_endpoint,
        pod_name=config.pod_name,
        events_plain=config.kv_events_plain,
        events_token_ids=config.kv_events_token_ids,
        log_level=config.log_level,
        task=config.task,
        pooling=config.pooling,
        fake=config.fake,
        fake_prefill_s_per_token=config.fake_prefill_s_per_token,
        fake_decode_s_per_step=config.fake_decode_s_per_step,
        step_timeout_s=config.operation.step_timeout_s,
        log_json=config.operation.log_format == "json",
        **{name: value for name, value in values.items() if value is not None},
    )
