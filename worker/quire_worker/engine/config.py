"""The engine process's configuration: what the API process writes as one JSON line to its standard input.

JSON, because arguments are visible to every user of the machine. Holds values only and reads nothing itself.
"""

from typing import Literal

import msgspec

from quire_worker.errors import ConfigError
from quire_worker.scheduling.policy import POLICIES


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine process knows. Unknown keys are errors; sizes are tokens unless a unit is named."""

    # Model
    model_dir: str
    """Folder of the Hugging Face checkpoint. With `fake` only `config.json` is looked at, and may be absent."""
    served_model_names: list[str]
    """Names requests may use; the first one names the model in KV events and load reports. At least one."""
    device: str = "auto"
    """"auto" | "cpu" | "cuda"."""
    dtype: str = "auto"
    """"auto" | "float32" | "bfloat16" | "float16"; auto takes the checkpoint's, where the device has it."""
    quantization: str = "none"
    """"none" | "int8" | "int8-weight-only" | "fp8": projections, from a checkpoint in floats."""
    kv_cache_dtype: str = "auto"
    """"auto" | "fp8"; auto takes dtype."""
    ops: str = "auto"
    """"auto" | "reference" | "cpu" | "cpu-torch" | "triton"."""
    batch_invariant: bool = False
    """On a GPU, attention whose results do not depend on the rows beside one."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    compute_threads: int | None = None
    """Threads that compute on a CPU. None: from the cgroup's cores."""
    seed: int = 0
    """Of the FakeRunner's tokens. Requests bring seeds of their own."""

    # Limits
    max_model_len: int | None = None
    """Tokens of prompt + output at most. None: the model's, fitted to the KV pool."""
    max_num_seqs: int = 256
    """Rows of the batch at most."""
    max_num_batched_tokens: int = 2048
    """Tokens computed in one step at most; >= max_num_seqs, so that every running row gets its token."""
    max_num_queued_reqs: int = 1024
    """Choices (n counts n) waiting for a row at most; more are rejected with "queue_full"."""
    max_num_queued_tokens: int = 4_000_000
    """Prompt tokens waiting at most; more are rejected with "queue_full"."""
    depth: int | None = None
    """Plans in flight: 1 waits for each step's tokens, 2 plans the next step meanwhile. None: 2 on a GPU, else 1."""
    scheduling_policy: str = "fcfs"
    """"fcfs" | "priority" | "sjf"."""
    scheduling_aging_s: float = 300.0
    """With "priority" and "sjf": a choice is overtaken only by those that come within so many seconds after it."""
    max_prefill_tokens_per_step: int | None = None
    """Prompt tokens of a step in which others decode. None: as many as let it take a few times as long as without, by measurement."""
    max_num_partial_prefills: int = 4
    """Prompts that do not fit into a step and are under way at once; 1 computes prompts strictly one after the other."""

    # KV cache
    block_size: int = 16
    """Tokens a block holds; a multiple of 16 (any size >= 1 with `fake`)."""
    gpu_memory_utilization: float = 0.9
    """Share of the device's memory that weights, activations and KV cache may take together, 0 < x <= 1."""
    kv_cache_memory_bytes: int | None = None
    """Bytes of the KV cache; overrides gpu_memory_utilization."""
    num_gpu_blocks_override: int | None = None
    """Physical blocks, the null block 0 included; overrides both of the above."""
    enable_prefix_caching: bool = True
    """Share blocks between requests that begin alike."""

    # Sockets to the API process (it binds, we connect)
    inbound_endpoint: str
    """ipc:// address we PULL ToEngine messages from."""
    outbound_endpoint: str
    """ipc:// address we PUSH FromEngine messages to."""

    # KV events and load reports
    pod_name: str = "localhost"
    """Second part of the topics "kv@<pod>@<model>" and "load@<pod>@<model>"."""
    events_endpoint: str | None = None
    """tcp:// address the PUB socket binds; port 0 lets the system choose (see Ready). None: nothing is published."""
    replay_endpoint: str | None = None
    """tcp:// address the ROUTER socket for replay and snapshot binds."""
    events_plain: bool = False
    """No CURVE on the two sockets although trust_dir is given, for other vendors' routers."""
    events_token_ids: bool = False
    """Put token ids into BlockStored events."""
    trust_dir: str | None = None
    """Folder with token, curve.pub and curve.key. None: the sockets are plain."""

    log_level: str = "info"
    """"debug" | "info" | "warning" | "error"."""

    # FakeRunner
    fake: bool = False
    """Deterministic tokens without torch or weights, for tests of everything around the engine."""
    fake_vocab_size: int = 512
    """Token ids of the FakeRunner lie in [0, this)."""
    fake_prefill_s_per_token: float = 0.0
    """Pretended time of one prompt token, seconds."""
    fake_decode_s_per_step: float = 0.0
    """Pretended time of one step, seconds, on top of its prompt tokens."""

    # What the model is served for
    task: Literal["auto", "generate", "embed", "score"] = "auto"
    """auto: by the checkpoint's architecture and files. With `fake`: generate, whatever this says."""
    pooling: Literal["mean", "last", "cls"] | None = None
    """How hidden states become an embedding. None: as the checkpoint's files say, else by architecture."""
    # Operation
    step_timeout_s: float = 120.0
    """A step that hangs for so many seconds ends the process; 0: never."""
    log_json: bool = False
    """Log lines are JSON objects."""
    max_rows_per_request: int | None = None
    """With "fcfs": rows that the prompts and choices of one client's request may hold while others wait. None: a quarter of all."""


def decode_engine_config(line: bytes) -> EngineConfig:
    """Parse and validate the JSON line. Raises ConfigError naming the field."""
    try:
        config = msgspec.json.decode(line, type=EngineConfig)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"engine configuration: {error}") from error
    _validate(config)
    _validate_scheduling(config)
    return config


def _validate(config: EngineConfig) -> None:
    at_least_one = {
        "served_model_names": len(config.served_model_names),
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_num_queued_reqs": config.max_num_queued_reqs,
        "max_num_queued_tokens": config.max_num_queued_tokens,
        "block_size": config.block_size,
        "fake_vocab_size": config.fake_vocab_size,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{_flag(name)} must be at least 1, got {value}")
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens ({config.max_num_batched_tokens}) must be at least --max-num-seqs "
            f"({config.max_num_seqs}): every running request computes one token in a step"
        )
    if config.block_size % 16 and not config.fake:
        raise ConfigError(f"--block-size must be a multiple of 16, got {config.block_size}")
    if not 0 < config.gpu_memory_utilization <= 1:
        raise ConfigError(f"--gpu-memory-utilization must be in (0, 1], got {config.gpu_memory_utilization}")
    for name in ("depth", "max_model_len", "kv_cache_memory_bytes", "num_gpu_blocks_override", "compute_threads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{_flag(name)} must be at least 1, got {value}")
    if config.num_gpu_blocks_override == 1:
        raise ConfigError("--num-gpu-blocks-override must be at least 2: block 0 holds no tokens")
    if config.replay_endpoint is not None and config.events_endpoint is None:
        raise ConfigError("--kv-replay-endpoint needs --kv-events-endpoint: there is nothing to replay without events")


def _validate_scheduling(config: EngineConfig) -> None:
    if config.scheduling_policy not in POLICIES:
        raise ConfigError(f"--scheduling-policy must be one of {', '.join(POLICIES)}, got {config.scheduling_policy}")
    if not 0 <= config.scheduling_aging_s < float("inf"):
        raise ConfigError(f"--scheduling-aging must be 0 or more seconds, got {config.scheduling_aging_s}")
    if config.max_num_partial_prefills < 1:
        raise ConfigError(f"--max-num-partial-prefills must be at least 1, got {config.max_num_partial_prefills}")
    tokens = config.max_prefill_tokens_per_step
    if tokens is not None and tokens < 1:
        raise ConfigError(f"--max-prefill-tokens-per-step must be at least 1, got {tokens}")
    rows = config.max_rows_per_request
    if rows is not None and rows < 1:
        raise ConfigError(f"--max-rows-per-request must be at least 1, got {rows}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-").replace("served-model-names", "served-model-name")
