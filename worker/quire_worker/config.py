"""What a worker is told at start: one frozen dataclass, and the command line that makes it.

Flags carry the names of `vllm serve` where one exists, so that users need not relearn. This module reads no file and no environment:
`__main__` passes the arguments, and keys found in the environment, as plain values.
"""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from quire_worker import flag_values
from quire_worker.operation import Operation, add_operation_flags, take_operation

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
DEVICES = ("auto", "cpu", "cuda")
OPS = ("auto", "reference", "cpu", "cpu-torch", "triton")
QUANTIZATIONS = ("none", "int8", "int8-weight-only", "fp8")
KV_CACHE_DTYPES = ("auto", "fp8")
POLICIES = ("fcfs", "priority", "sjf")
Task = Literal["auto", "generate", "embed", "score"]
Pooling = Literal["mean", "last", "cls"]
TOOL_CALL_PARSERS = ("auto", "none", "hermes", "llama3_json", "mistral", "deepseek_v3", "deepseek_v31", "qwen3_coder")
REASONING_PARSERS = ("auto", "none", "think", "deepseek_r1", "qwen3", "mistral")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """One worker: an API process and its engine process. Lengths are in tokens unless a unit says otherwise."""

    model: Path
    """Folder of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json."""
    chat_template: Path | None = None
    """Jinja file used instead of the model's own chat template."""
    served_model_names: tuple[str, ...] = ()
    """Names clients may put in `model`; the first is the one answers carry. Empty: the model folder's name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 or :: for every interface."""
    port: int = 8000
    """TCP port; 0 lets the system choose."""
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """Bearer keys, any of which opens every route; empty: no key is asked for."""
    trust_dir: Path | None = None
    """Folder with the token and CURVE keys shared with routers; None: a plain server."""
    dtype: str = "auto"
    """Type of weights and KV: auto (the checkpoint's), half|float16, bfloat16, float|float32."""
    quantization: str = "none"
    """How projections are quantised while they are loaded: none; weights and activations, int8 (on a CPU) or fp8 (on a GPU); or weights
    alone, int8-weight-only (on a CPU)."""
    kv_cache_dtype: str = "auto"
    """Type of cached keys and values: auto (dtype), or fp8 (on a GPU)."""
    device: str = "auto"
    """auto (cuda if there is one), cpu or cuda."""
    ops: str = "auto"
    """Kernel set: auto (by device), reference, cpu or triton."""
    batch_invariant: bool = False
    """On a GPU, attention whose results do not depend on the requests beside one, at some cost; a CPU's never do."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    max_model_len: int | None = None
    """Prompt plus output at most, in tokens; None: the checkpoint's, reduced to what the KV pool holds."""
    max_num_seqs: int | None = None
    """Choices that run at once; None: the engine's default."""
    max_num_batched_tokens: int | None = None
    """Tokens of one step; None: the engine's default."""
    block_size: int = 16
    """Tokens of a KV block, a multiple of 16."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory that weights, activations and KV may take together, 0 to 1."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV pool in bytes; overrides gpu_memory_utilization."""
    num_gpu_blocks_override: int | None = None
    """Number of KV blocks; overrides every other way to size the pool."""
    enable_prefix_caching: bool = True
    """Keep finished prompts' blocks and reuse them."""
    seed: int | None = None
    """Makes requests that bring no seed repeatable: request k since start uses seed + k. None: a random one each."""
    generation_config: str = "auto"
    """Sampling defaults: auto (the model's generation_config.json), vllm (none), or a folder with that file."""
    depth: int | None = None
    """Steps in flight, 1 or 2; None: the engine's default."""
    compute_threads: int | None = None
    """Threads of CPU computation; None: the cores this process may use."""
    fake: bool = False
    """A deterministic stand-in for the model: real scheduler and KV events, no torch, no weights. For tests."""
    fake_prefill_s_per_token: float = 0.0
    """Pretended time of one prompt token, in seconds, with `fake`."""
    fake_decode_s_per_step: float = 0.0
    """Pretended time of one step, in seconds, with `fake`."""
    max_num_queued_reqs: int = 1024
    """Choices that may wait before further requests get 429."""
    max_num_queued_tokens: int | None = None
    """Prompt tokens that may wait before further requests get 429; None: the engine's default."""
    scheduling_policy: str = "fcfs"
    """Who is served first: fcfs (first come), priority (the request's own, lower first) or sjf (the shortest expected job)."""
    scheduling_aging_s: float = 300.0
    """With priority and sjf: a request is overtaken only by those that come within so many seconds after it."""
    max_prefill_tokens_per_step: int | None = None
    """Prompt tokens in a step in which streams decode; None: what lets it take at most a few times as long, as measured."""
    max_num_partial_prefills: int = 4
    """Prompts longer than a step that may be under way at once."""
    max_rows_per_request: int | None = None
    """With fcfs: prompts and choices of one request that run while other requests wait; None: a quarter of max_num_seqs."""
    request_timeout_s: float = 0.0
    """A request that is not done after so many seconds ends with an error; 0: no limit."""
    queue_timeout_s: float = 0.0
    """A request that has not begun after so many seconds is refused; 0: no limit."""
    max_logprobs: int = 20
    """Highest logprobs / top_logprobs a request may ask for."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body, in bytes; a larger one gets 413."""
    kv_events_endpoint: str | None = None
    """ZMQ PUB endpoint of KV events and load reports, e.g. tcp://127.0.0.1:5557; None: none are sent."""
    kv_replay_endpoint: str | None = None
    """ZMQ ROUTER endpoint for replay and snapshots, e.g. tcp://127.0.0.1:5558."""
    kv_events_plain: bool = False
    """Event sockets without CURVE although there is a trust folder: for other vendors' routers."""
    kv_events_token_ids: bool = False
    """Put token ids into BlockStored events. They reveal prompts to whoever may read the socket."""
    pod_name: str = "local"
    """Names this worker in event topics kv@<pod>@<model>."""
    drain_timeout_s: float = 30.0
    """After SIGTERM, running requests may go on for so many seconds; after a drain by request, what can be had from another worker."""
    load_timeout_s: float = 600.0
    """/health turns 503 when a loading worker has neither read nor computed for so many seconds."""
    health_timeout_s: float = 120.0
    """/health turns 503 when the engine has been silent, or has had work but made no step, for so many seconds."""
    disable_log_requests: bool = False
    """No log line per finished request."""
    enable_access_log: bool = False
    """One log line per HTTP request, probes included."""
    log_level: str = "info"
    """debug, info, warning or error."""
    task: Task = "auto"
    """What the model is served for: auto (by its architecture and files), generate, embed or score."""
    pooling: Pooling | None = None
    """How hidden states become an embedding: mean, last or cls; None: as the checkpoint's files say, else by architecture."""
    tool_call_parser: str = "auto"
    """Format of the model's tool calls: auto (by chat template and vocabulary), none, or a format's name."""
    reasoning_parser: str = "auto"
    """How the model marks its reasoning: auto (by chat template and vocabulary), none, think (deepseek_r1, qwen3) or mistral."""
    allowed_template_kwargs: tuple[str, ...] = ()
    """Names that requests may set in chat_template_kwargs beside those that turn reasoning on and off."""
    operation: Operation = dataclasses.field(default_factory=Operation)
    """Health, watchdog, keys, connections, telemetry: what does not change any answer."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """Served names, never empty."""
        return self.served_model_names or (self.model.resolve().name,)


class _Parser(argparse.ArgumentParser):
    """Errors that say what to type instead."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[1], flags, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            message = f"unknown flag {unknown[1]}: {hint}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_args(
    argv: Sequence[str],
    env_api_keys: Sequence[str] = (),
    version: str = "unknown",
    *,
    env_otlp_endpoint: str | None = None,
) -> WorkerConfig:
    """The configuration that the command line `argv` (without the program's name) asks for.

    `env_api_keys` are used when no --api-key is given, `env_otlp_endpoint` without --otlp-endpoint; `version` is what --version shows.
    Exits with code 2 and a line that names the flag when `argv` is wrong.
    """
    parser = _build_parser()
    parser.add_argument("--version", action="version", version=f"quire-worker {version}")
    values = vars(parser.parse_args(argv))
    positional, flag = values.pop("model_positional"), values.pop("model")
    if positional and flag and positional != flag:
        parser.error(f"the model is given twice, as {positional} and --model {flag}: give one")
    if not positional and not flag:
        parser.error("no model given: add the checkpoint's folder, e.g. --model /models/llama")
    given = [key for group in values.pop("api_keys") or [] for key in group]
    keys = given or list(env_api_keys)
    if any(len(key) == 0 or not key.isascii() for key in keys):
        parser.error("argument --api-key: a key must be non-empty ASCII text")
    names = [name for group in values.pop("served_model_names") or [] for name in group]
    kwargs = [name for group in values.pop("allowed_template_kwargs") or [] for name in group]
    if values["kv_replay_endpoint"] and not values["kv_events_endpoint"]:
        parser.error(
            "argument --kv-replay-endpoint: needs --kv-events-endpoint too, replay serves what events announced"
        )
    try:
        operation = take_operation(values, env_otlp_endpoint)
    except ValueError as error:
        parser.error(str(error))
    return WorkerConfig(
        operation=operation,
        model=Path(positional or flag),
        served_model_names=tuple(dict.fromkeys(names)),
        api_keys=tuple(dict.fromkeys(keys)),
        allowed_template_kwargs=tuple(dict.fromkeys(kwargs)),
        **values,
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="quire-worker",
        allow_abbrev=False,
        description="Serve one model: an OpenAI-compatible API in front of Quire's paged-KV engine.",
        epilog="Environment: QUIRE_API_KEY or VLLM_API_KEY is used when no --api-key is given, OTEL_EXPORTER_OTLP_ENDPOINT when no "
        "--otlp-endpoint is. `quire-worker hash-key [NAME]` turns a key on standard input into a line for --api-key-file.",
    )
    _add_model_flags(parser.add_argument_group("model"))
    _add_server_flags(parser.add_argument_group("server"))
    _add_engine_flags(parser.add_argument_group("engine"))
    _add_event_flags(parser.add_argument_group("events and trust"))
    add_operation_flags(parser)
    return parser


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    group.add_argument("model_positional", nargs="?", metavar="MODEL", help="the same as --model")
    group.add_argument("--model", metavar="DIR", help="folder of a Hugging Face checkpoint")
    add("--chat-template", metavar="FILE", type=Path)
    _add_list(group, "--served-model-name", dest="served_model_names", metavar="NAME")
    add("--task", choices=get_args(Task))
    add("--pooling", choices=get_args(Pooling))
    add("--dtype", choices=DTYPES)
    add("--quantization", choices=QUANTIZATIONS)
    add("--kv-cache-dtype", choices=KV_CACHE_DTYPES)
    add("--max-model-len", metavar="N", type=flag_values.tokens)
    add("--generation-config", metavar="auto|vllm|DIR")
    add("--tool-call-parser", choices=TOOL_CALL_PARSERS)
    add("--reasoning-parser", choices=REASONING_PARSERS)
    _add_list(group, "--allow-chat-template-kwarg", dest="allowed_template_kwargs", metavar="NAME")
    add("--seed", metavar="N", type=flag_values.integer(0, 2**63 - 1))
    add("--fake", action="store_true")
    add("--fake-prefill-s-per-token", metavar="SECONDS", type=flag_values.seconds)
    add("--fake-decode-s-per-step", metavar="SECONDS", type=flag_values.seconds)


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--host", metavar="ADDRESS")
    add("--port", metavar="N", type=flag_values.integer(0, 65535))
    _add_list(group, "--api-key", dest="api_keys", metavar="KEY")
    add("--max-logprobs", metavar="N", type=flag_values.integer(0, 1000))
    add("--max-body-bytes", metavar="BYTES", type=flag_values.size)
    add("--drain-timeout", dest="drain_timeout_s", metavar="SECONDS", type=flag_values.seconds)
    add("--load-timeout", dest="load_timeout_s", metavar="SECONDS", type=flag_values.seconds)
    add("--health-timeout", dest="health_timeout_s", metavar="SECONDS", type=flag_values.seconds)
    add("--disable-log-requests", action="store_true")
    add("--enable-access-log", action="store_true")
    add("--log-level", choices=LOG_LEVELS)


def _add_engine_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--device", choices=DEVICES)
    add("--ops", choices=OPS)
    add("--batch-invariant", action="store_true")
    add("--enforce-eager", action="store_true")
    add("--max-num-seqs", metavar="N", type=flag_values.integer(1))
    add("--max-num-batched-tokens", metavar="N", type=flag_values.integer(1))
    add("--block-size", metavar="N", type=flag_values.block_size)
    add("--gpu-memory-utilization", metavar="SHARE", type=flag_values.share)
    add("--kv-cache-memory-bytes", metavar="BYTES", type=flag_values.size)
    add("--num-gpu-blocks-override", metavar="N", type=flag_values.integer(2))
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    add("--depth", metavar="1|2", type=flag_values.integer(1, 2))
    add("--compute-threads", metavar="N", type=flag_values.integer(1))
    add("--max-num-queued-reqs", metavar="N", type=flag_values.integer(1))
    add("--max-num-queued-tokens", metavar="N", type=flag_values.integer(1))
    _add_scheduling_flags(add)


def _add_scheduling_flags(add: Callable[..., None]) -> None:
    add("--scheduling-policy", choices=POLICIES)
    add("--scheduling-aging", dest="scheduling_aging_s", metavar="SECONDS", type=flag_values.seconds)
    add("--max-prefill-tokens-per-step", metavar="N", type=flag_values.tokens)
    add("--max-num-partial-prefills", metavar="N", type=flag_values.integer(1))
    add("--max-rows-per-request", metavar="N", type=flag_values.integer(1))
    add("--request-timeout", dest="request_timeout_s", metavar="SECONDS", type=flag_values.seconds)
    add("--queue-timeout", dest="queue_timeout_s", metavar="SECONDS", type=flag_values.seconds)


def _add_event_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--trust-dir", metavar="DIR", type=Path)
    add("--kv-events-endpoint", metavar="ENDPOINT", type=flag_values.endpoint)
    add("--kv-replay-endpoint", metavar="ENDPOINT", type=flag_values.endpoint)
    add("--kv-events-plain", action="store_true")
    add("--kv-events-token-ids", action="store_true")
    add("--pod-name", metavar="NAME", type=flag_values.pod_name)


def _adder(group: argparse._ArgumentGroup) -> Callable[..., None]:
    """An add_argument whose default is the dataclass's own."""
    defaults = {field.name: field.default for field in dataclasses.fields(WorkerConfig)}

    def add(flag: str, *, dest: str | None = None, **kwargs: Any) -> None:
        name = dest or flag.removeprefix("--").replace("-", "_")
        default = defaults[name]
        shown = "" if default is None or kwargs.get("action") == "store_true" else f" [{default}]"
        group.add_argument(flag, dest=name, default=default, help=_FLAG_HELP[name] + shown, **kwargs)

    return add


def _add_list(group: argparse._ArgumentGroup, flag: str, *, dest: str, metavar: str) -> None:
    """A flag that may be repeated and may take several values."""
    group.add_argument(flag, dest=dest, metavar=metavar, nargs="+", action="append", help=_FLAG_HELP[dest])


_FLAG_HELP = {
    "chat_template": "Jinja file to use instead of the model's chat template",
    "served_model_names": "name clients may ask for, repeatable; the first is the one shown [the folder's name]",
    "task": "what to serve the model for: text, embeddings, or scores of pairs; auto goes by the checkpoint",
    "pooling": "how hidden states become an embedding [what the checkpoint says]",
    "dtype": "type of weights and KV",
    "quantization": "quantise projections while loading: int8 or int8-weight-only on a CPU, fp8 on a GPU; all but int8-weight-only "
    "quantise activations too",
    "kv_cache_dtype": "type of cached keys and values: that of the model, or fp8 on a GPU",
    "max_model_len": "prompt plus output at most; 8k, 32K and auto are understood [what the model and the KV pool allow]",
    "tool_call_parser": "format of the model's tool calls; auto: by chat template and vocabulary",
    "reasoning_parser": "how the model marks reasoning: think (also deepseek_r1, qwen3) or mistral; auto: by template and vocabulary",
    "allowed_template_kwargs": "name that requests may set in chat_template_kwargs, repeatable",
    "generation_config": "sampling defaults: the model's own, none (vllm), or a folder's",
    "seed": "makes requests without a seed repeatable [random]",
    "fake": "a deterministic stand-in for the model, for tests: needs no weights",
    "fake_prefill_s_per_token": "pretended time of a prompt token, with --fake",
    "fake_decode_s_per_step": "pretended time of a step, with --fake",
    "host": "address to listen on",
    "port": "port to listen on, 0 to let the system choose",
    "api_keys": "key clients must send as 'Authorization: Bearer KEY', repeatable; guards all but health, ready and metrics. Visible to "
    "whoever sees this machine's processes: prefer --api-key-file or the environment",
    "max_logprobs": "highest logprobs a request may ask for",
    "max_body_bytes": "largest request body",
    "drain_timeout_s": "how long running requests may go on after SIGTERM, and streams that can go on elsewhere after POST /internal/drain",
    "load_timeout_s": "how long a load may make no progress before /health says 503",
    "health_timeout_s": "how long the engine may make no progress before /health says 503",
    "disable_log_requests": "no log line per finished request",
    "enable_access_log": "log every HTTP request, probes too",
    "log_level": "how much to log",
    "device": "where to compute",
    "ops": "which kernels to compute with",
    "batch_invariant": "a GPU gives a request's logits the same bits whatever runs beside it, at some cost; a CPU always does",
    "enforce_eager": "no CUDA graphs: slower steps, less memory",
    "max_num_seqs": "choices that run at once [engine's default]",
    "max_num_batched_tokens": "tokens of one step [engine's default]",
    "block_size": "tokens of a KV block, a multiple of 16",
    "gpu_memory_utilization": "share of GPU memory to use",
    "kv_cache_memory_bytes": "size of the KV pool, e.g. 4G [fitted]",
    "num_gpu_blocks_override": "number of KV blocks [fitted]",
    "enable_prefix_caching": "reuse the KV of shared prefixes",
    "depth": "steps in flight [2 on a GPU, 1 on a CPU]",
    "compute_threads": "CPU threads for computation [the cores this process may use]",
    "max_num_queued_reqs": "choices that may wait; further requests get 429",
    "max_num_queued_tokens": "prompt tokens that may wait; further requests get 429 [engine's default]",
    "scheduling_policy": "who is served first: first come, by the request's priority (lower first), or the shortest expected job",
    "scheduling_aging_s": "with priority and sjf: a request is overtaken only by those that come within this time after it",
    "max_prefill_tokens_per_step": "prompt tokens of a step in which streams decode; auto keeps such a step below four times one without",
    "max_num_partial_prefills": "prompts longer than a step that may be under way at once, so that short ones get past them",
    "max_rows_per_request": "with fcfs: prompts and choices of one request that run while others wait [a quarter of --max-num-seqs]",
    "request_timeout_s": "how long a request may take before it ends with 504; 0 for no limit",
    "queue_timeout_s": "how long a request may wait to begin before it is refused with 503; 0 for no limit",
    "trust_dir": "folder with the secrets shared with routers; without its token a worker serves only health, ready and metrics",
    "kv_events_endpoint": "where to publish KV events and load reports [nowhere]",
    "kv_replay_endpoint": "where to serve replay and snapshots of KV events [nowhere]",
    "kv_events_plain": "no encryption on event sockets although there is a trust folder",
    "kv_events_token_ids": "put token ids into KV events; they reveal prompts",
    "pod_name": "names this worker in events",
}
