"""Starts the cluster's processes with a log each, and ends them by their own process ids, never by name.

Under tests they die with their parent, however it ends; under `make cluster-up` they outlive it and their ids are in files.
"""

import collections
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

POLL_S = 0.05
# Below the ports that the kernel gives to clients, so that a server which starts again finds its port free.
PORTS = range(18000, 32000)


class ProcessError(Exception):
    """A process of the cluster ended, or was not ready in time; the message has the end of its log."""


_given: collections.deque[int] = collections.deque(maxlen=4000)
"""Ports that were given lately: who was given one may not listen on it yet, or not at the moment."""


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """TCP ports on which nothing listens now, different from each other and from those that were given lately."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            if port not in _given and port not in found and probe.connect_ex((address, port)) != 0:
                found.append(port)
                _given.append(port)
    return found


def wait_for(ready: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Looks until `ready()` holds. Raises ProcessError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ProcessError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(POLL_S)


class Processes:
    """The processes of one cluster. `folder` gets logs/NAME.log and pids/NAME."""

    def __init__(self, folder: Path, *, die_with_parent: bool) -> None:
        self._logs, self._pids = folder / "logs", folder / "pids"
        self._prefix: list[str] = []
        if die_with_parent and (setpriv := shutil.which("setpriv")):
            # A parent that died before the signal was asked for is never told of: the shell looks once it is.
            orphan = f'[ "$PPID" = {os.getpid()} ] || exit 1; exec "$@"'
            self._prefix = [setpriv, "--pdeathsig", "KILL", "--", "sh", "-c", orphan, "sh"]
        # The kernel's parent is the thread that forked: one that lives as long as this object, whoever calls start().
        self._spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs.mkdir(parents=True, exist_ok=True)
        self._pids.mkdir(exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        """Starts `command` as `name` in a session of its own, so that Ctrl-C reaches the tests first."""
        process = self._spawner.submit(self._spawn, name, command, environment or {}).result()
        self._running[name] = process
        (self._pids / name).write_text(f"{process.pid} {_started(process.pid)}")

    def _spawn(
        self, name: str, command: Sequence[str | Path], environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*self._prefix, *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip

    def is_running(self, name: str) -> bool:
        """Whether the process that was started under `name` lives."""
        if name in self._running:
            return self._running[name].poll() is None
        return self._recorded(name) is not None

    def stop(self, name: str, *, timeout_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after `timeout_s`; nothing if it does not run."""
        pid = self._recorded(name)
        if pid is not None:
            _signal(pid, signal.SIGTERM)
            try:
                wait_for(lambda: not self.is_running(name), timeout_s, f"{name} ends")
            except ProcessError:
                _signal(pid, signal.SIGKILL)
                wait_for(lambda: not self.is_running(name), 60.0, f"{name} is killed")
        self._forget(name)

    def kill(self, name: str) -> None:
        """SIGKILL, and waits for the end."""
        pid = self._recorded(name)
        if pid is not None:
            _signal(pid, signal.SIGKILL)
            wait_for(lambda: not self.is_running(name), 60.0, f"{name} is killed")
        self._forget(name)

    @contextlib.contextmanager
    def away(self, name: str, *, frozen: bool) -> Iterator[None]:
        """Without the process while entered: killed, and started anew by the same command; or stopped where it is, and then goes on."""
        pid = self._recorded(name)
        if pid is None:
            raise ProcessError(f"{name} does not run")
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        if frozen:
            _signal(pid, signal.SIGSTOP)
        else:
            self.kill(name)
        try:
            yield
        finally:
            if frozen:
                _signal(pid, signal.SIGCONT)
            else:
                self._start_outliving(name, command)

    def _start_outliving(self, name: str, command: list[str]) -> None:
        """Starts it as `start` does, but nobody waits for it, so it may outlive this process without a warning."""
        with (self._logs / f"{name}.log").open("ab") as log:
            told = [(os.POSIX_SPAWN_DUP2, log.fileno(), standard) for standard in (1, 2)]
            files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *told]
            pid = os.posix_spawnp(command[0], command, os.environ, file_actions=files, setsid=True)
        (self._pids / name).write_text(f"{pid} {_started(pid)}")

    def wait_ready(self, name: str, ready: Callable[[], bool], timeout_s: float) -> None:
        """Waits for `ready()`. Raises ProcessError, with the log's end, if it takes longer or the process ends."""

        def ready_or_dead() -> bool:
            if not self.is_running(name):
                raise ProcessError(f"{name} ended at once:\n{self.log_end(name)}")
            return ready()

        try:
            wait_for(ready_or_dead, timeout_s, f"{name} is ready")
        except ProcessError as error:
            raise ProcessError(f"{error}\n{self.log_end(name)}") from None

    def log_end(self, name: str, lines: int = 15) -> str:
        """The last lines that it wrote."""
        return "\n".join((self._logs / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])

    def _recorded(self, name: str) -> int | None:
        file = self._pids / name
        if not file.exists():
            return None
        pid, _, started = file.read_text().partition(" ")
        # An id is given again after a while: the start time tells ours from a stranger's.
        return int(pid) if started and _started(int(pid)) == started else None

    def _forget(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.wait(timeout=60)
        (self._pids / name).unlink(missing_ok=True)


def _started(pid: int) -> str:
    """When the process started, in clock ticks since boot; "" if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
