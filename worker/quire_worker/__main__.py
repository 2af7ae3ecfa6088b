"""The worker's API process: reads arguments and environment, checks them, builds, runs. Console script `quire-worker`."""

import importlib.metadata
import os
import socket
import sys
from collections.abc import Sequence

import prometheus_client
import uvloop
from aiohttp import http_parser

from quire_contract.telemetry import configure_logging
from quire_contract.trust import Trust, TrustError
from quire_worker.config import WorkerConfig, parse_args
from quire_worker.errors import ConfigError, QuireWorkerError
from quire_worker.models.safetensors_files import read_entries
from quire_worker.server.worker import Worker

CANNOT_START_EXIT_CODE = 2
"""The same as for a wrong flag: a flag, the model or the machine is wrong, and whoever restarts us may as well not."""
_KEY_VARIABLES = ("QUIRE_API_KEY", "VLLM_API_KEY")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the process; never returns."""
    arguments = sys.argv[1:] if argv is None else argv
    version = importlib.metadata.version("quire")
    config = parse_args(arguments, [os.environ[name] for name in _KEY_VARIABLES if os.environ.get(name)], version)
    configure_logging(level=config.log_level, process="api")
    try:
        _check_installation()
        # They are a second series for every counter, which nobody reads.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        if not config.fake and config.model.is_dir():
            # The engine process finds the same, but only after torch has been imported.
            read_entries(config.model)
        trust = None if config.trust_dir is None else _read_trust(config)
        with bind(config.host, config.port) as listening:
            code = uvloop.run(_run(config, trust, listening, version))
    except QuireWorkerError as error:
        print(f"quire-worker: error: {error}", file=sys.stderr, flush=True)
        code = CANNOT_START_EXIT_CODE
    sys.exit(code)


async def _run(config: WorkerConfig, trust: Trust | None, listening: socket.socket, version: str) -> int:
    return await Worker(config, trust, listening, version).run()


def bind(host: str, port: int) -> socket.socket:
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
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or --port 0 to let the system choose"
        ) from None
    listening.setblocking(False)
    return listening


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
