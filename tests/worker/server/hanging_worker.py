"""A worker as `python -m quire_worker` makes it, but SIGUSR1 makes its event loop hang. Run by tests only.

The first argument says how the loop hangs, or which engine to start; the others are the worker's.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from quire_contract.telemetry import configure_logging
from quire_worker.__main__ import bind
from quire_worker.config import parse_args
from quire_worker.last_words import LastWords
from quire_worker.server.engine_process import ENGINE_COMMAND
from quire_worker.server.worker import Worker
from quire_worker.watchdog import show_stacks_on_crash


def spin_for_ever() -> None:
    while True:
        pass


LOOP_HANGS: dict[str, Callable[[], object]] = {"loop spins": spin_for_ever, "loop waits": threading.Event().wait}


async def run(how: str, argv: list[str]) -> int:
    config = parse_args(argv)
    engine = ENGINE_COMMAND
    if how in LOOP_HANGS:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, LOOP_HANGS[how])
    else:
        engine = (sys.executable, str(Path(__file__).with_name("hanging_engine.py")), how)
    with bind(config.host, config.port) as listening, bind(config.host, 0) as health:
        worker = Worker(
            config,
            None,
            listening,
            "test",
            engine_command=engine,
            health_listening=health,
            last_words=LastWords(config.operation.termination_log),
        )
        return await worker.run()


if __name__ == "__main__":
    configure_logging(process="api")
    show_stacks_on_crash()
    sys.exit(asyncio.run(run(sys.argv[1], sys.argv[2:])))
