"""Workers and routers as processes of their own, on ports that stay theirs over restarts."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.processes import free_ports

from quire_contract.router_config import EndpointEntry


def family_of(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(member for child in children for member in family_of(int(child)))]


class OwnProcess:
    """A process that may be killed and started again with the same command, so on the same ports."""

    def __init__(self, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: what it has beside this process's own. Its log goes on over restarts."""
        self.log_path = log_path
        self._command, self._environment = list(command), {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self._process is not None, "it runs"
        return self._process.pid

    def signal(self, number: int) -> None:
        """To it and all that it started, as a node's trouble would be."""
        for pid in family_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def end(self, timeout_s: float) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None, "it runs"
        self._process.terminate()
        return self._process.wait(timeout_s)


class WorkerProcess(OwnProcess):
    """One worker of model "m"."""

    def __init__(self, worker_id: str, model_dir: Path, log_path: Path, *flags: str) -> None:
        self.id = worker_id
        port, events, replay = free_ports(3)
        self.entry = EndpointEntry(
            id=worker_id,
            url=f"http://127.0.0.1:{port}",
            models=["m"],
            events=f"tcp://127.0.0.1:{events}",
            replay=f"tcp://127.0.0.1:{replay}",
        )
        command = [sys.executable, "-m", "quire_worker", "--model", str(model_dir), "--served-model-name", "m"]
        command += ["--port", str(port), "--pod-name", worker_id, "--disable-log-requests"]
        command += ["--kv-events-endpoint", f"tcp://127.0.0.1:{events}", "--kv-replay-endpoint"]
        super().__init__([*command, f"tcp://127.0.0.1:{replay}", *flags], log_path)


class RouterProcess(OwnProcess):
    """`quire-router` with a configuration file. It runs at once."""

    def __init__(self, config: Path, log_path: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: what it has beside this process's own."""
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "quire_router", "--config", str(config), "--port", str(port), *flags]
        super().__init__(command, log_path, environment)
        self.start()
