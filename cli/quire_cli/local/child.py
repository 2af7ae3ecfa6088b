"""One child process in a session of its own: start, signal, wait, and the end of its log.

Everything is addressed by process id. Its standard output and error go straight into its log file. This module must not know pods.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher") / "__main__.py"
_TAIL_BYTES = 16 * 1024


class Child:
    """A running or ended process. It leads its own process group, so that its own children go with it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._exited = False

    @classmethod
    async def start(cls, argv: Sequence[str], environ: Mapping[str, str], log: Path, cwd: Path) -> "Child":
        """Starts `argv` in folder `cwd`; what it prints is appended to `log`."""
        launched = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *argv]
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *launched,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environ),
                cwd=cwd,
                start_new_session=True,
            )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id, which is also its group's."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, negative for a signal. Whatever else is in its group is gone too: a container's end."""
        code = await self._process.wait()
        if not self._exited:
            self._exited = True
            self._signal_group(signal.SIGKILL)
        return code

    def terminate(self) -> None:
        """Asks the process itself to end; it tells its own children."""
        if self._process.returncode is None:
            # Not Process.terminate: it looks for the end itself, and may take the exit code away from asyncio.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends the whole group now."""
        if self._process.returncode is None:
            self._signal_group(signal.SIGKILL)

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, then SIGKILL after `grace_s`. The exit code."""
        self.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self.kill()
            return await self.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left in it


def log_tail(log: Path, start: int = 0, num_lines: int = 15) -> list[str]:
    """The last lines of what a log holds from byte `start` on."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-num_lines:]
