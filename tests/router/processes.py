"""Workers and routers as processes of their own, on ports that stay theirs over restarts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from quire_contract.router_config import EndpointEntry


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def family_of(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(member for child in children for member in family_of(int(child)))]


class WorkerProcess:
    """One worker of model "m"."""

    def __init__(self, worker_id: str, model_dir: Path, log_path: Path, *flags: str) -> None:
        self.id, self._log_path = worker_id, log_path
        port, events, replay = free_ports(3)
        self.entry = EndpointEntry(
            id=worker_id,
            url=f"http://127.0.0.1:{port}",
            models=["m"],
            events=f"tcp://127.0.0.1:{events}",
            replay=f"tcp://127.0.0.1:{replay}",
        )
        self._command = [sys.executable, "-m", "quire_worker", "--model", str(model_dir), "--served-model-name", "m"]
        self._command += ["--port", str(port), "--pod-name", worker_id, "--disable-log-requests"]
        self._command += ["--kv-events-endpoint", f"tcp://127.0.0.1:{events}", "--kv-replay-endpoint"]
        self._command += [f"tcp://127.0.0.1:{replay}", *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def signal(self, number: int) -> None:
        """To every process of the worker, as a node's trouble would be."""
        assert self._process is not None, "it runs"
        for pid in family_of(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


class RouterProcess:
    """`quire-router` with a configuration file."""

    def __init__(self, config: Path, log_path: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: what it has beside this process's own."""
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "quire_router", "--config", str(config), "--port", str(port), *flags]
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
