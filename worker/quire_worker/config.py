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
from typing import Any, NoReturn

from quire_worker.flag_values import (
    block_size as _block_size,
)
from quire_worker.flag_values import (
    endpoint as _endpoint,
)
from quire_worker.flag_values import (
    integer as _integer,
)
from quire_worker.flag_values import (
    pod_name as _pod_name,
)
from quire_worker.flag_values import (
    seconds as _seconds,
)
from quire_worker.flag_values import (
    share as _share,
)
from quire_worker.flag_values import (
    size as _size,
)
from quire_worker.flag_values import (
    tokens as _tokens,
)
from quire_worker.operation import Operation, add_operation_flags, take_operation

DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
DEVICES = ("auto", "cpu", "cuda")
OPS = ("auto", "reference", "cpu", "cpu-torch", "triton")
QUANTIZATIONS = ("none", "int8", "fp8")
KV_CACHE_DTYPES = ("auto", "fp8")
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
    """How projections are quantised while they are loaded, weights and activations: none, int8 (on a CPU) or fp8 (on a GPU)."""
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
    """After SIGTERM, running requests may go on for so many seconds."""
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
    add("--dtype", choices=DTYPES)
    add("--quantization", choices=QUANTIZATIONS)
    add("--kv-cache-dtype", choices=KV_CACHE_DTYPES)
    add("--max-model-len", metavar="N", type=_tokens)
    add("--generation-config", metavar="auto|vllm|DIR")
    add("--seed", metavar="N", type=_integer(0, 2**63 - 1))
    add("--fake", action="store_true")
    add("--fake-prefill-s-per-token", metavar="SECONDS", type=_seconds)
    add("--fake-decode-s-per-step", metavar="SECONDS", type=_seconds)


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--host", metavar="ADDRESS")
    add("--port", metavar="N", type=_integer(0, 65535))
    _add_list(group, "--api-key", dest="api_keys", metavar="KEY")
    add("--max-logprobs", metavar="N", type=_integer(0, 1000))
    add("--max-body-bytes", metavar="BYTES", type=_size)
    add("--drain-timeout", dest="drain_timeout_s", metavar="SECONDS", type=_seconds)
    add("--load-timeout", dest="load_timeout_s", metavar="SECONDS", type=_seconds)
    add("--health-timeout", dest="health_timeout_s", metavar="SECONDS", type=_seconds)
    add("--disable-log-requests", action="store_true")
    add("--enable-access-log", action="store_true")
    add("--log-level", choices=LOG_LEVELS)


def _add_engine_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--device", choices=DEVICES)
    add("--ops", choices=OPS)
    add("--batch-invariant", action="store_true")
    add("--enforce-eager", action="store_true")
    add("--max-num-seqs", metavar="N", type=_integer(1))
    add("--max-num-batched-tokens", metavar="N", type=_integer(1))
    add("--block-size", metavar="N", type=_block_size)
    add("--gpu-memory-utilization", metavar="SHARE", type=_share)
    add("--kv-cache-memory-bytes", metavar="BYTES", type=_size)
    add("--num-gpu-blocks-override", metavar="N", type=_integer(2))
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    add("--depth", metavar="1|2", type=_integer(1, 2))
    add("--compute-threads", metavar="N", type=_integer(1))
    add("--max-num-queued-reqs", metavar="N", type=_integer(1))
    add("--max-num-queued-tokens", metavar="N", type=_integer(1))


def _add_event_flags(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add("--trust-dir", metavar="DIR", type=Path)
    add("--kv-events-endpoint", metavar="ENDPOINT", type=_endpoint)
    add("--kv-replay-endpoint", metavar="ENDPOINT", type=_endpoint)
    add("--kv-events-plain", action="store_true")
    add("--kv-events-token-ids", action="store_true")
    add("--pod-name", metavar="NAME", type=_pod_name)


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
    "dtype": "type of weights and KV",
    "quantization": "quantise projections while loading, weights and activations: int8 on a CPU, fp8 on a GPU",
    "kv_cache_dtype": "type of cached keys and values: that of the model, or fp8 on a GPU",
    "max_model_len": "prompt plus output at most; 8k, 32K and auto are understood [what the model and the KV pool allow]",
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
    "drain_timeout_s": "how long running requests may go on after SIGTERM",
    "load_timeout_s": "how long a load may make no progress before /health says 503",
    "health_timeout_s": "how long the engine may make no progress before /health says 503",
    "disable_log_requests": "no log line per finished request",
    "enable_access_log": "log every HTTP request, probes too",
    "log_level": "how much to log",
    "device": "where to compute",
    "ops": "which kernels to compute with",
    "batch_invariant": "attention on a GPU gives a request the same bits whatever runs beside it, at some cost; on a CPU all does",
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
    "trust_dir": "folder with the secrets shared with routers; without its token a worker serves only health, ready and metrics",
    "kv_events_endpoint": "where to publish KV events and load reports [nowhere]",
    "kv_replay_endpoint": "where to serve replay and snapshots of KV events [nowhere]",
    "kv_events_plain": "no encryption on event sockets although there is a trust folder",
    "kv_events_token_ids": "put token ids into KV events; they reveal prompts",
    "pod_name": "names this worker in events",
}
