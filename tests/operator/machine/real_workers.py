"""Worker processes with a fake engine in the place of pods: what a kubelet does for one namespace."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from quire_contract import names
from quire_contract.kube import resources
from quire_contract.kube.client import KubeError
from tests.operator.machine.scaling_world import POLL_S, some_address

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
STEP_S = 0.05


class WorkerProcesses:
    """Each worker's pod gets a process at an address of its own, started again when it dies, and told to end when the pod is."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.addresses: dict[str, str] = {}
        self.num_starts = 0
        self._shown: dict[str, bool] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["WorkerProcesses"]:
        """While it works."""
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])
            for process in self.processes.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()
            if not task.cancelled():
                task.result()

    def kill(self, name: str) -> None:
        """As the kernel does when memory is short."""
        self.processes[name].send_signal(signal.SIGKILL)

    async def _run(self) -> None:
        selector = f"{names.LABEL_ROLE}={names.ROLE_WORKER}"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                try:
                    pods, _ = await self._cluster.client.list(resources.POD, self._cluster.namespace, selector)
                    for pod in pods:
                        await self._keep(session, pod)
                except KubeError as error:
                    if error.status not in (0, 404, 409):
                        raise
                await asyncio.sleep(POLL_S)

    async def _keep(self, session: aiohttp.ClientSession, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        process = self.processes.get(name)
        if pod["metadata"].get("deletionTimestamp"):
            await self._end(name, process)
            return
        if process is None or process.returncode is not None:
            await self._start(name)
        is_ready = await self._is_ready(session, self.addresses[name])
        if self._shown.get(name) != is_ready:
            await self._show(name, is_ready)

    async def _end(self, name: str, process: asyncio.subprocess.Process | None) -> None:
        if process is not None and process.returncode is None:
            process.terminate()
            return
        path = resources.POD.path(self._cluster.namespace, name)
        await self._cluster.client._request("DELETE", path, resources.POD, body={"gracePeriodSeconds": 0})

    async def _start(self, name: str) -> None:
        self.num_starts += 1
        address = self.addresses.setdefault(name, some_address())
        command = [sys.executable, "-m", "quire_worker", "--fake", "--model", str(DEMO), "--served-model-name", "demo"]
        command += ["--fake-decode-s-per-step", str(STEP_S), "--host", address, "--port", str(names.PORT_HTTP)]
        with (self._folder / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    @staticmethod
    async def _is_ready(session: aiohttp.ClientSession, address: str) -> bool:
        try:
            async with session.get(f"http://{address}:{names.PORT_HTTP}{names.PATH_READY}") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _show(self, name: str, is_ready: bool) -> None:
        address = self.addresses[name]
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True" if is_ready else "False"}],
        }
        await self._cluster.client.merge_patch(
            resources.POD, self._cluster.namespace, name, {"status": status}, subresource="status"
        )
        self._shown[name] = is_ready
