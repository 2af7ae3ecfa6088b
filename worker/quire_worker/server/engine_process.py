"""Starts the engine process and waits for its end.

The configuration goes through standard input, because arguments are visible to every user of the machine. The pipe then stays open:
its end tells the engine that this process is gone, however it went. The engine gets a session of its own, so that Ctrl-C in a terminal
reaches the API process alone, which drains first.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence

from quire_worker.watchdog import HUNG_EXIT_CODE

ENGINE_COMMAND = (sys.executable, "-m", "quire_worker.engine")
_ABORT_S = 1.0


class EngineProcess:
    """A running engine process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, config_json: bytes, command: Sequence[str] = ENGINE_COMMAND) -> "EngineProcess":
        """Start `command` and write it the configuration as one line."""
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, start_new_session=True, limit=2**16
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died at once: wait() tells
            process.stdin.write(config_json + b"\n")
            await process.stdin.drain()
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> str:
        """Wait for the end; how it ended, for a person."""
        return describe_exit(await self._process.wait())

    async def abort(self) -> None:
        """End a process that hangs: it writes its threads' stacks (see watchdog.show_stacks_on_crash) if it still can, then is killed."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)
            self._process.send_signal(signal.SIGCONT)  # one that was stopped takes no other signal
            try:
                await asyncio.wait_for(self._process.wait(), _ABORT_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        """Close the pipe, which the engine takes as the order to exit; kill it if it has not after `timeout_s`."""
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def describe_exit(code: int) -> str:
    """The meaning of a subprocess's return code, with a hint where there is a usual cause."""
    if code == HUNG_EXIT_CODE:
        return "a step hung and the engine process ended itself; the log has the stacks of its threads"
    if code >= 0:
        return f"the engine process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; out of memory? look at the container's memory limit" if -code == signal.SIGKILL else ""
    return f"the engine process was ended by {name}{hint}"
