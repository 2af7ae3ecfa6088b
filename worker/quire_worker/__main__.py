"""The worker's API process: reads arguments and environment, checks them, builds, runs. Console script `quire-worker`."""

import contextlib
import importlib.metadata
import os
import resource
import socket
import sys
from collections.abc import Sequence

import prometheus_client
import uvloop
from aiohttp import http_parser

from quire_contract.names import EXIT_MODEL_GONE
from quire_contract.telemetry import configure_logging
from quire_contract.trust import Trust, TrustError
from quire_worker.config import WorkerConfig, parse_args
from quire_worker.errors import ConfigError, QuireWorkerError
from quire_worker.last_words import LastWords
from quire_worker.models.cached_folder import ModelGoneError, in_use
from quire_worker.models.config import load_model_config, read_config_json
from quire_worker.models.embedding_config import resolve_task
from quire_worker.models.safetensors_files import read_entries
from quire_worker.server.keys import key_line
from quire_worker.server.worker import Worker
from quire_worker.watchdog import show_stacks_on_crash

CANNOT_START_EXIT_CODE = 2
"""The same as for a wrong flag: a flag, the model or the machine is wrong, and whoever restarts us may as well not."""
_WANTED_FILES = 65_536
_HASH_KEY = "hash-key"
_KEY_VARIABLES = ("QUIRE_API_KEY", "VLLM_API_KEY")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the process; never returns."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == [_HASH_KEY]:
        sys.exit(_hash_key(arguments[1:]))
    version = importlib.metadata.version("quire")
    config = parse_args(
        arguments,
        [os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)],
        version,
        env_otlp_endpoint=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    configure_logging(level=config.log_level, as_json=config.operation.log_format == "json", process="api")
    show_stacks_on_crash()
    _allow_many_files()
    sys.exit(_serve(config, version))


def _hash_key(arguments: Sequence[str]) -> int:
    """A line for --api-key-file, of the key on standard input: arguments are visible to everybody on the machine."""
    key = sys.stdin.readline().strip()
    if len(arguments) > 1 or not key:
        print(f"usage: quire-worker {_HASH_KEY} [NAME] < file with the key", file=sys.stderr)
        return CANNOT_START_EXIT_CODE
    try:
        print(key_line(arguments[0] if arguments else "key", key))
    except ConfigError as error:
        print(f"quire-worker: error: {error}", file=sys.stderr)
        return CANNOT_START_EXIT_CODE
    return 0


def _serve(config: WorkerConfig, version: str) -> int:
    """The exit code; why it is not 0 stands in the log and in the termination log."""
    last_words = LastWords(config.operation.termination_log)
    try:
        _check_installation()
        # They are a second series for every counter, which nobody reads.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        with contextlib.ExitStack() as stack:
            stack.enter_context(in_use(config.model))  # until this process ends, and with it the engine's
            if not config.fake and config.model.is_dir():
                # The engine process finds the same, but only after torch has been imported.
                if resolve_task(read_config_json(config.model), config.model, config.task) == "generate":
                    load_model_config(config.model)
                read_entries(config.model)
            trust = None if config.trust_dir is None else _read_trust(config)
            listening = stack.enter_context(bind(config.host, config.port))
            health = None
            if config.operation.health_port is not None:
                health = stack.enter_context(bind(config.host, config.operation.health_port, flag="--health-port"))
            return uvloop.run(_run(config, trust, listening, health, version, last_words))
    except QuireWorkerError as error:
        last_words.write(str(error))
        print(f"quire-worker: error: {error}", file=sys.stderr, flush=True)
        return EXIT_MODEL_GONE if isinstance(error, ModelGoneError) else CANNOT_START_EXIT_CODE
    except Exception as error:
        # Its text may hold anything, so it is for the log only.
        last_words.write(f"the API process failed: {type(error).__name__} (its log has the traceback)")
        raise


async def _run(
    config: WorkerConfig,
    trust: Trust | None,
    listening: socket.socket,
    health: socket.socket | None,
    version: str,
    last_words: LastWords,
) -> int:
    worker = Worker(config, trust, listening, version, health_listening=health, last_words=last_words)
    return await worker.run()


def bind(host: str, port: int, flag: str = "--port") -> socket.socket:
    """A listening socket. ConfigError names address and flag if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host: {host} is no address of this machine ({error}); use 127.0.0.1 or 0.0.0.0") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another {flag}, or {flag} 0 to let the system choose"
        ) from None
    listening.setblocking(False)
    return listening


def _allow_many_files() -> None:
    """A connection is an open file, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _WANTED_FILES)), hard))


def _read_trust(config: WorkerConfig) -> Trust:
    assert config.trust_dir is not None
    try:
        return Trust.read(config.trust_dir)
    except TrustError as error:
        raise ConfigError(f"--trust-dir: {error}") from None


def _check_installation() -> None:
    if not hasattr(http_parser, "HttpRequestParserC"):
        raise ConfigError(
            "aiohttp was installed without its C parser, whose Python stand-in is slow and less strict; reinstall aiohttp from a wheel"
        )


if __name__ == "__main__":
    main()
