"""How a worker is operated: health, watchdog, keys, limits of connections, telemetry. Values and their flags.

A part of the worker's configuration (see config.py) in a module of its own. Reads no file and no environment.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from quire_worker import flag_values

LOG_FORMATS = ("key-value", "json")
TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """What does not change any answer."""

    health_port: int | None = None
    """Further TCP port that serves /health, /ready and /metrics only, by a thread of its own; None: the main port alone serves them."""
    step_timeout_s: float = 120.0
    """A step, or the API's event loop, that hangs for so many seconds ends both processes; 0: never."""
    termination_log: Path | None = TERMINATION_LOG
    """File for the reason of a failure, if it exists; None: none."""
    api_key_file: Path | None = None
    """Further keys, `name:sha256hex` or plain, one a line; read again when it changes."""
    share_prefix_cache: bool = False
    """Holders of different API keys share cached prefixes, and so may time each other's."""
    header_timeout_s: float = 15.0
    """A request's head must be complete so many seconds after its first byte."""
    body_timeout_s: float = 60.0
    """A request's body must be complete so many seconds after its head."""
    send_timeout_s: float = 120.0
    """A client that takes nothing of its answer for so many seconds is cut off, and its request ends; 0: never."""
    max_unread_bytes: int = 256 * 1024 * 1024
    """Memory for what clients have not taken of their answers: all of it, and a sixteenth for one. Who goes beyond is cut."""
    keep_alive_timeout_s: float = 75.0
    """A connection without a request is closed after so many seconds."""
    max_connections: int = 4096
    """Connections at once; further ones get 503."""
    tls_cert: Path | None = None
    """Certificate chain, PEM; None: plain HTTP. Read again when it changes."""
    tls_key: Path | None = None
    """Private key, PEM; None: it is in `tls_cert`."""
    log_format: str = "key-value"
    """key-value or json."""
    legacy_metrics: bool = False
    """Metrics under names that vLLM has removed, too."""
    otlp_endpoint: str | None = None
    """Base URL of an OTLP/HTTP collector that gets spans; None: no tracing."""
    trace_sample_ratio: float = 1.0
    """Share of the requests that get a span, 0 to 1; a caller's own decision in `traceparent` counts more."""
    start_asleep: bool = False
    """Load, then sleep until POST /internal/wake."""


_FLAGS: dict[str, tuple[str, dict[str, Any], str]] = {
    # field: (flag, argparse's options, help)
    "health_port": (
        "--health-port",
        {"metavar": "N", "type": flag_values.integer(0, 65535)},
        "serve /health, /ready and /metrics on this port too, by a thread that a busy server cannot hold up [none]",
    ),
    "step_timeout_s": (
        "--step-timeout",
        {"metavar": "SECONDS", "type": flag_values.seconds},
        "end the worker, with all stacks in the log, when a step or the server hangs for so long; 0 never does",
    ),
    "termination_log": (
        "--termination-log",
        {"metavar": "FILE|none", "type": lambda text: None if text == "none" else Path(text)},
        "write the reason of a failure into this file, if it exists",
    ),
    "api_key_file": (
        "--api-key-file",
        {"metavar": "FILE", "type": Path},
        "keys, one a line, as NAME:SHA256HEX (`quire-worker hash-key` makes it) or plain; changes count at once",
    ),
    "share_prefix_cache": (
        "--share-prefix-cache",
        {"action": "store_true"},
        "let holders of different keys share cached prefixes: faster, but one can time what another sent",
    ),
    "header_timeout_s": (
        "--header-timeout",
        {"metavar": "SECONDS", "type": flag_values.seconds},
        "how long a client may take to send a request's head",
    ),
    "body_timeout_s": (
        "--body-timeout",
        {"metavar": "SECONDS", "type": flag_values.seconds},
        "how long a client may take to send a request's body",
    ),
    "send_timeout_s": (
        "--send-timeout",
        {"metavar": "SECONDS", "type": flag_values.seconds},
        "how long a client may take nothing of its answer",
    ),
    "max_unread_bytes": (
        "--max-unread-bytes",
        {"metavar": "BYTES", "type": flag_values.size},
        "memory for what clients have not taken of their answers, a sixteenth of it for one; an answer beyond that ends with an error",
    ),
    "keep_alive_timeout_s": (
        "--keep-alive-timeout",
        {"metavar": "SECONDS", "type": flag_values.seconds},
        "how long a connection may stay open without a request",
    ),
    "max_connections": (
        "--max-connections",
        {"metavar": "N", "type": flag_values.integer(1)},
        "connections at once; further ones get 503",
    ),
    "tls_cert": ("--tls-cert", {"metavar": "FILE", "type": Path}, "serve HTTPS with this certificate chain (PEM)"),
    "tls_key": ("--tls-key", {"metavar": "FILE", "type": Path}, "the certificate's private key [in --tls-cert]"),
    "log_format": ("--log-format", {"choices": LOG_FORMATS}, "how log lines look"),
    "legacy_metrics": (
        "--legacy-metrics",
        {"action": "store_true"},
        "metrics under the names that vLLM has removed, too, for older dashboards and routers",
    ),
    "otlp_endpoint": (
        "--otlp-endpoint",
        {"metavar": "URL"},
        "send a span for each request to this OTLP/HTTP collector, e.g. http://localhost:4318 [nowhere]",
    ),
    "trace_sample_ratio": (
        "--trace-sample-ratio",
        {"metavar": "SHARE", "type": flag_values.proportion},
        "share of the requests that get a span, unless their caller has decided",
    ),
    "start_asleep": (
        "--start-asleep",
        {"action": "store_true"},
        "load the model, then give the memory of KV (and of a GPU) back and wait for POST /internal/wake",
    ),
}


def add_operation_flags(parser: argparse.ArgumentParser) -> None:
    """A group of flags, one for each field."""
    group = parser.add_argument_group("operation")
    for field in dataclasses.fields(Operation):
        flag, options, text = _FLAGS[field.name]
        is_plain = field.default is None or options.get("action") == "store_true"
        shown = "" if is_plain else f" [{field.default}]"
        group.add_argument(flag, dest=field.name, default=field.default, help=text + shown, **options)


def take_operation(values: dict[str, Any], env_otlp_endpoint: str | None = None) -> Operation:
    """Takes its fields out of parsed flags. ValueError, for a person, if they do not go together.

    `env_otlp_endpoint` counts where no flag is given."""
    taken = {field.name: values.pop(field.name) for field in dataclasses.fields(Operation)}
    taken["otlp_endpoint"] = taken["otlp_endpoint"] or env_otlp_endpoint or None
    operation = Operation(**taken)
    if operation.tls_key is not None and operation.tls_cert is None:
        raise ValueError("argument --tls-key: needs --tls-cert too")
    if operation.otlp_endpoint is not None and not operation.otlp_endpoint.startswith(("http://", "https://")):
        raise ValueError(
            f"argument --otlp-endpoint: {operation.otlp_endpoint!r} is not a URL such as http://localhost:4318"
        )
    return operation
