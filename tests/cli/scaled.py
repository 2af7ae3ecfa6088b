"""`quire up` with the real router and real workers whose model is pretended (`--fake`); scheduler, sockets and drain are real."""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from quire_cli.local.run_folder import ADMIN_FILE, SCALING_FILE
from tests.cli.files import put

POLL_S = 0.02
REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "examples" / "models" / "quire-demo"
SCRIPT = "#!{python}\nimport sys\nfrom {module}.__main__ import main\nsys.argv[1:1] = {flags!r}\nsys.exit(main())\n"
DRIVER = """
import os, pathlib, sys
from quire_cli.app import run_command
from quire_cli.host import Host

host = Host(environ=dict(os.environ), python=pathlib.Path(sys.argv[1]) / "python")
sys.exit(run_command(host, sys.argv[2:]))
"""


class ScaledUp:
    """A running `quire up` of one service, "m"."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession, folder: Path) -> None:
        self.process = process
        self.http = http
        self.manifest = folder / "m.yaml"
        self.base = ""
        self.lines: list[str] = []
        self._tmp = folder / "tmp"
        self._more = asyncio.Event()
        self._seen = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while raw := await self.process.stdout.readline():
            self.lines.append(raw.decode().rstrip())
            self._more.set()
        self.lines.append("END")
        self._more.set()

    async def wait_for(self, pattern: str, timeout_s: float = 300) -> "re.Match[str]":
        """The first line after the last one that was waited for."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    while self._seen < len(self.lines):
                        self._seen += 1
                        if match := re.search(pattern, self.lines[self._seen - 1]):
                            return match
                        assert self.lines[self._seen - 1] != "END", f"no {pattern!r} in:\n{self.told}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} in:\n{self.told}") from None

    def rewind(self) -> None:
        """From here on `wait_for` looks at all lines again."""
        self._seen = 0

    @property
    def told(self) -> str:
        """All output so far."""
        return "\n".join(self.lines)

    @property
    def folder(self) -> Path:
        """The run's."""
        (folder,) = self._tmp.glob("quire-up-*")
        return folder

    def scaling(self) -> dict[str, Any]:
        """How the service stands."""
        shown: dict[str, Any] = json.loads((self.folder / SCALING_FILE).read_text())["services"]["default/m"]
        return shown

    def decisions(self) -> list[tuple[int, int, str]]:
        """(from, to, reason), oldest first."""
        return [(one["from"], one["to"], one["reason"]) for one in reversed(self.scaling()["history"])]

    def change(self, **scaling: Any) -> None:
        """Write spec.scaling anew, with these fields changed."""
        document = yaml.safe_load(self.manifest.read_text())
        document["spec"]["scaling"] |= scaling
        put(self.manifest, yaml.safe_dump(document))

    def workers(self) -> list[psutil.Process]:
        """Their first processes."""
        return [child for child in psutil.Process(self.process.pid).children() if _is_worker(child)]

    def kill(self, pod: str) -> None:
        """SIGKILL to a pod's process."""
        (pid,) = re.findall(rf"{pod}: starting \(pid (\d+)\)", self.told)[-1:]
        psutil.Process(int(pid)).kill()

    async def until(self, look: Callable[[], bool], timeout_s: float = 300) -> None:
        """Until `look` is true: what it looks at happens in other processes."""
        async with asyncio.timeout(timeout_s):
            while not look():  # noqa: ASYNC110 - nobody sets an event
                await asyncio.sleep(POLL_S)

    async def ask(self, *, tokens: int = 4, stream: bool = False, **headers: str) -> tuple[int, int]:
        """(status, tokens of the answer) of one completion; a stream that was cut has too few."""
        body = {"model": "m", "prompt": "What is 12 + 30?", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        async with self.http.post(f"{self.base}/v1/completions", json=body, headers=headers) as answer:
            text = await answer.text()
        if not stream or answer.status != 200:
            return answer.status, json.loads(text).get("usage", {}).get("completion_tokens", 0)
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]", f"cut: {text[-300:]}"
        usages = [usage for event in events[:-1] if (usage := json.loads(event).get("usage"))]
        return answer.status, usages[-1]["completion_tokens"]

    def asking(self, number: int, *, tokens: int = 4) -> list["asyncio.Task[tuple[int, int]]"]:
        """So many at once, every other one a stream."""
        return [asyncio.create_task(self.ask(tokens=tokens, stream=bool(i % 2))) for i in range(number)]

    @asynccontextmanager
    async def under_load(
        self, clients: int, *, tokens: int, whole: bool = True
    ) -> AsyncIterator[list[tuple[int, int]]]:
        """Each client asks one thing after the other while entered: what is asked does not end before what it leads to was seen.

        Their answers, all of them there once this is left. `whole`: every other client asks for no streams.
        """
        answers: list[tuple[int, int]] = []
        enough = asyncio.Event()

        async def keep_asking(stream: bool) -> None:
            answers.append(await self.ask(tokens=tokens, stream=stream))
            while not enough.is_set():
                answers.append(await self.ask(tokens=tokens, stream=stream))

        async with asyncio.TaskGroup() as group:
            for i in range(clients):
                group.create_task(keep_asking(not whole or bool(i % 2)))
            yield answers
            enough.set()

    async def usage(self) -> list[dict[str, Any]]:
        """What was billed, request by request."""
        admin = json.loads((self.folder / ADMIN_FILE).read_text())
        headers = {"Authorization": f"Bearer {admin['token']}"}
        async with self.http.get(f"{admin['url']}/admin/usage", headers=headers) as answer:
            records: list[dict[str, Any]] = (await answer.json())["data"]
            return records

    async def end(self) -> int:
        """Asks for the end; the exit code."""
        self.process.terminate()
        code = await asyncio.wait_for(self.process.wait(), 300)
        await self._reader
        return code

    async def close(self) -> None:
        """Whatever is left ends."""
        if self.process.returncode is None:
            family: list[psutil.Process] = []
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself: its output says why
                own = psutil.Process(self.process.pid)
                family = [own, *own.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await self.process.wait()
        await self._reader


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("quire-worker" in part for part in process.cmdline())
    except psutil.Error:  # it ends just now
        return False


@asynccontextmanager
async def scaled_up(
    folder: Path, scaling: dict[str, Any], *, step_s: float = 0.02, **spec: Any
) -> AsyncIterator[ScaledUp]:
    """`quire up` that is ready. `step_s`: how long workers take for one token."""
    bin_dir, tmp = folder / "bin", folder / "tmp"
    bin_dir.mkdir()
    tmp.mkdir()
    fake = ["--fake", "--fake-decode-s-per-step", str(step_s)]
    for name, flags in (("worker", fake), ("router", list[str]())):
        script = bin_dir / f"quire-{name}"
        script.write_text(SCRIPT.format(python=sys.executable, module=f"quire_{name}", flags=flags))
        script.chmod(0o755)
    document = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "m"},
        "spec": {"model": {"uri": f"file://{MODEL}"}, "scaling": scaling, **spec},
    }
    tenant = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "acme"},
        "spec": {
            "keys": [{"id": "first", "sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}]
        },
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(document))
    (folder / "tenant.yaml").write_text(yaml.safe_dump(tenant))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRIVER, str(bin_dir), "up", str(folder / "m.yaml"), str(folder / "tenant.yaml"), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder,
        env={**os.environ, "HOME": str(folder), "TMPDIR": str(tmp), "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    headers = {"Authorization": "Bearer key"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:
        running = ScaledUp(process, http, folder)
        try:
            running.base = (await running.wait_for(r"^ready: (http://\S+)/v1 "))[1]
            running.rewind()  # a worker may have been quicker than the router
            yield running
        finally:
            await running.close()
