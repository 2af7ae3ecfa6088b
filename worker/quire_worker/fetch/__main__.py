"""The model fetcher: reads arguments and environment, builds, runs, and says why it failed. Console script `quire-fetch`.

Exit codes: 0 the model is there; 2 it will not come until somebody changes something; 1 it may come the next time.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from quire_contract.telemetry import configure_logging, log_event
from quire_worker.fetch.build import open_fetcher
from quire_worker.fetch.config import FetchConfig, parse_args
from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason
from quire_worker.fetch.progress import Progress, progress_server

log = logging.getLogger("quire_worker.fetch")
INTERRUPTED_EXIT_CODE = 1
FAILED_EXIT_CODE = 2
_MAX_MESSAGE_CHARS = 2000
"""Kubernetes keeps 4096 bytes of a termination message."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the process; never returns."""
    config = parse_args(sys.argv[1:] if argv is None else argv, os.environ)
    configure_logging(level=config.log_level, process="fetch")
    try:
        downloaded_bytes = asyncio.run(_run(config))
        _write_message(config.termination_log, {"downloaded_bytes": downloaded_bytes})
        code = 0
    except FetchError as error:
        log_event(log, logging.ERROR, "cannot fetch the model", reason=error.reason, message=error)
        write_termination_message(config.termination_log, error)
        code = INTERRUPTED_EXIT_CODE if isinstance(error, InterruptedFetchError) else FAILED_EXIT_CODE
    except asyncio.CancelledError:
        log_event(log, logging.INFO, "stopped; the next start goes on from here")
        code = INTERRUPTED_EXIT_CODE
    sys.exit(code)


def write_termination_message(path: Path, error: FetchError) -> None:
    """For the pod's status. The kubelet makes the file; where there is none, nobody reads it."""
    _write_message(path, {"reason": str(error.reason), "message": str(error)[:_MAX_MESSAGE_CHARS]})


def _write_message(path: Path, message: Mapping[str, str | int]) -> None:
    if path.exists():
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(message), "utf-8")


async def _run(config: FetchConfig) -> int:
    """Bytes that came over the network; 0: the model was there."""
    task = asyncio.current_task()
    assert task is not None
    # So that an ordered end gives up the lease, and nobody waits for it to grow stale.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    progress = Progress()
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(progress_server(progress, config.progress_host, config.progress_port))
        except OSError as error:
            log_event(log, logging.WARNING, "nobody will see the progress", why=error.strerror)
        fetcher = await stack.enter_async_context(open_fetcher(config, progress, importlib.metadata.version("quire")))
        try:
            await fetcher.run()
            return progress.received_bytes
        except FetchError as error:
            progress.enter("failed", str(error))
            raise
        except aiohttp.ClientError as error:
            raise InterruptedFetchError(Reason.UNREACHABLE, f"the source cannot be read: {error}") from None
        except (
            Exception
        ) as error:  # whatever a source may send, somebody reads in the pod's status why it does not work
            log.exception("the fetch failed in an unforeseen way")
            raise InterruptedFetchError(
                Reason.UNREACHABLE, f"the source answers in an unforeseen way ({type(error).__name__}); see the log"
            ) from None


if __name__ == "__main__":
    main()
