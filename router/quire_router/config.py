"""The router's flags and the frozen configuration made of them. Reads no environment: `__main__` passes what it found there."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from quire_contract import names
from quire_contract.openai.limits import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """One router process."""

    config: Path | None = None
    """The router_config file; polled, replaced as a whole by its writer. None: the cluster's API says what is served."""
    kubernetes: bool = False
    """Follow the API server of the cluster that the router runs in."""
    kubeconfig: Path | None = None
    """Follow the API server that this file names."""
    release: str = ""
    """The release whose shards are followed."""
    release_namespace: str = ""
    """Where they are; empty: the router's own namespace."""
    watch_namespaces: tuple[str, ...] = ()
    """Whose workers are served; "*": every namespace's; none given: the release's."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = names.PORT_ROUTER
    """Port to listen on; 0 lets the system choose one."""
    trust_dir: Path | None = None
    """Folder with the token and CURVE keys shared with workers; None: workers are plain servers."""
    kv_events_plain: bool = False
    """Event sockets are not encrypted although there is a trust folder: the workers run with the same flag."""
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """Keys of which clients must send one; none: anybody may call."""
    max_body_bytes: int = Limits().max_body_bytes
    """Of a request's body; more is a 413."""
    connect_timeout_s: float = 1.5
    """Until a worker accepts a connection."""
    first_byte_timeout_s: float = 300.0
    """Until the first event of a stream: it includes waiting in the worker's queue."""
    answer_timeout_s: float = 1800.0
    """Until the whole of an answer that is not streamed."""
    idle_timeout_s: float = 120.0
    """Between two parts of a stream, preemption at the worker included, and for a client to take what was sent."""
    shutdown_timeout_s: float = 60.0
    """After SIGTERM and the delay: how long requests may go on."""
    shutdown_delay_s: float = 0.0
    """After SIGTERM: how long the port still takes requests while readiness is off, until nobody is sent here any more."""
    max_index_blocks: int = 4_000_000
    """KV blocks remembered over all endpoints; about 150 bytes each."""
    tokenizer_threads: int = 2
    """Threads that tokenise long prompts."""
    redis_url: str = dataclasses.field(default="", repr=False)
    """The Redis that routers of a release share, for limits, usage and answers; empty: each for itself. Of the environment."""
    redis_password: str = dataclasses.field(default="", repr=False)
    """Where the URL has none. Of the environment."""
    redis_timeout_s: float = 0.25
    """Longest wait of a request for Redis, once: after it Redis is away, and limits are held without it."""
    admin_host: str = "127.0.0.1"
    """Address of the admin port."""
    admin_port: int | None = None
    """Port of the admin API; 0 lets the system choose one; None: there is none."""
    admin_token: str = dataclasses.field(default="", repr=False)
    """What callers of the admin port must send. Of the environment, or of a file."""
    admin_token_file: Path | None = None
    """Holds the admin token."""
    log_requests: bool = True
    """One log line for each request."""
    log_level: str = "info"
    """debug, info, warning or error."""
    state_dir: Path | None = None
    """Folder for the configuration that was last in force on a cluster; None: a router that starts while the API server is away waits."""


def parse_args(argv: Sequence[str], env_api_keys: Sequence[str] = ()) -> RouterSettings:
    """Settings of the flags. `env_api_keys` are used when no --api-key is given. Exits with code 2 and names the flag if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="quire-router",
        description="One OpenAI-compatible endpoint in front of workers; sends each request where its prefix is cached.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    defaults = {field.name: field.default for field in dataclasses.fields(RouterSettings)}
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="FILE", help="router configuration (JSON): models and endpoints")
    source.add_argument("--kubernetes", action="store_true", help="follow the cluster that the router runs in")
    source.add_argument("--kubeconfig", type=Path, metavar="FILE", help="follow the cluster that FILE names")
    add("--release", default="", metavar="NAME", help="release whose configuration is followed on a cluster")
    add("--release-namespace", default="", metavar="NS", help="the release's namespace; the router's own if not given")
    add(
        "--watch-namespace",
        dest="watch_namespaces",
        action="append",
        default=[],
        metavar="NS",
        help="namespace whose workers are served ('*': all); may be repeated; the release's if not given",
    )
    add("--host", default=defaults["host"], help="address to listen on")
    add("--port", type=_port, default=defaults["port"], help="port to listen on")
    add("--trust-dir", type=Path, metavar="DIR", help="folder with token, curve.pub and curve.key shared with workers")
    add("--kv-events-plain", action="store_true", help="workers' event sockets are not encrypted")
    add("--api-key", action="append", default=[], metavar="KEY", help="key that clients must send; may be repeated")
    add("--max-body-bytes", type=_positive_int, default=defaults["max_body_bytes"], help="largest request body")
    for name, text in _TIMEOUTS.items():
        add(
            f"--{name.replace('_', '-')[:-2]}", dest=name, type=_seconds, default=defaults[name], metavar="S", help=text
        )
    add(
        "--shutdown-delay",
        dest="shutdown_delay_s",
        type=_seconds_or_zero,
        default=defaults["shutdown_delay_s"],
        metavar="S",
        help="seconds after SIGTERM that the port still takes requests while readiness is off",
    )
    add("--max-index-blocks", type=_positive_int, default=defaults["max_index_blocks"], help="KV blocks remembered")
    add("--tokenizer-threads", type=_positive_int, default=defaults["tokenizer_threads"], help="for long prompts")
    add("--admin-host", default=defaults["admin_host"], help="address of the admin port")
    add("--admin-port", type=_port, metavar="PORT", help="port of the admin API (usage, tenants); needs an admin token")
    add(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help=f"holds the token that callers of the admin port must send; without it {names.ENV_ADMIN_TOKEN} does",
    )
    add("--disable-log-requests", dest="log_requests", action="store_false", help="no log line for each request")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what is logged")
    add(
        "--state-dir", type=Path, metavar="DIR", help="keep the last configuration here, for a start without API server"
    )
    values = vars(parser.parse_args(argv))
    if values["config"] is None and not values["release"]:
        parser.error("--release: is required with --kubernetes and --kubeconfig")
    if "" in values["watch_namespaces"]:
        parser.error("--watch-namespace: must not be empty")
    values["watch_namespaces"] = tuple(values["watch_namespaces"])
    keys = values.pop("api_key") or list(env_api_keys)
    return RouterSettings(**values, api_keys=tuple(dict.fromkeys(keys)))


class SettingsError(ValueError):
    """Settings that do not go together. The message names the flag or variable and the fix."""


def with_environment(settings: RouterSettings, environment: Mapping[str, str]) -> RouterSettings:
    """With what comes by the environment only: secrets, and the address that holds one. SettingsError."""
    token = environment.get(names.ENV_ADMIN_TOKEN, "").strip()
    if settings.admin_token_file is not None:
        try:
            token = settings.admin_token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--admin-token-file: {settings.admin_token_file} cannot be read: {error}") from None
    if settings.admin_port is not None and len(token) < _MIN_ADMIN_TOKEN_CHARS:
        raise SettingsError(
            f"--admin-port: needs a token of at least {_MIN_ADMIN_TOKEN_CHARS} characters; set {names.ENV_ADMIN_TOKEN}"
            " or --admin-token-file"
        )
    url = environment.get(names.ENV_REDIS_URL, "").strip()
    if url and not _is_redis_url(url):
        raise SettingsError(f"{names.ENV_REDIS_URL}: must be redis://host:port/db, or begin with rediss:// or unix://")
    return dataclasses.replace(
        settings,
        admin_token=token,
        redis_url=url,
        redis_password=environment.get(names.ENV_REDIS_PASSWORD, ""),
    )


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("redis", "rediss", "unix")


_MIN_ADMIN_TOKEN_CHARS = 16
_TIMEOUTS = {
    "connect_timeout_s": "seconds until a worker accepts a connection",
    "first_byte_timeout_s": "seconds until the first event of a stream",
    "answer_timeout_s": "seconds until the whole of an answer that is not streamed",
    "idle_timeout_s": "seconds between two parts of a stream",
    "shutdown_timeout_s": "seconds that requests may go on after SIGTERM",
    "redis_timeout_s": "seconds that a request waits for Redis, once; then limits are held without it until it answers",
}


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; use 0 to 65535")
    return port


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a positive number of seconds")
    return value


def _seconds_or_zero(text: str) -> float:
    return 0.0 if float(text) == 0 else _seconds(text)
