"""One operator and many InferenceServices on a real API server: requests when idle, time from a change to the children, memory.

    python bench/operator_scale.py --kubeconfig FILE [--services 500] [--changes 200] [--idle 120]

Needs the CRDs installed and a controller manager; no nodes: pods stay pending. Everything is made in one namespace and deleted
afterwards. "Idle" counts the requests of the operator's own client but those for the Lease and watches; Kopf's own, which are a watch per
kind begun anew every few minutes, are not counted.
"""

import argparse
import asyncio
import json
import os
import random
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

from quire_contract.kube import resources
from quire_contract.kube.access import KubeAccess
from quire_contract.kube.client import KubeClient
from quire_contract.kube.reflector import Reflector

PORT = 18181
SERVICE = resources.INFERENCE_SERVICE


class Deployments:
    """Replicas that each service's Deployment has, by watch, and when they were seen."""

    def __init__(self) -> None:
        self.replicas: dict[str, int] = {}
        self._changed = asyncio.Event()

    def replace(self, items: list[dict]) -> None:
        for item in items:
            self.event("ADDED", item)

    def event(self, event: str, item: dict) -> None:
        self.replicas[item["metadata"]["labels"]["quire.dev/service"]] = item["spec"]["replicas"]
        self._changed.set()

    async def until(self, name: str, replicas: int, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            while self.replicas.get(name) != replicas:
                self._changed.clear()
                await self._changed.wait()


def operator_counts() -> dict[str, float]:
    """Answers by verb and kind."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for labels, value in re.findall(r"^quire_operator_api_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        fields = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        key = f"{fields['method']} {fields['kind']}"
        found[key] = found.get(key, 0) + float(value)
    return found


def resident_mib(pid: int, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1024


def added(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What came between, without the Lease and watches."""
    return {
        key: after[key] - before.get(key, 0)
        for key in after
        if after[key] > before.get(key, 0) and not key.startswith("WATCH") and not key.endswith(" Lease")
    }


async def create_services(client: KubeClient, namespace: str, count: int) -> None:
    slots = asyncio.Semaphore(8)

    async def create(index: int) -> None:
        body = {
            "apiVersion": SERVICE.api_version,
            "kind": SERVICE.kind,
            "metadata": {"name": f"service-{index:03d}"},
            "spec": {"model": {"uri": "pvc://models/llama"}, "replicas": 0},
        }
        async with slots:
            await client.create(SERVICE, namespace, body)

    await asyncio.gather(*(create(index) for index in range(count)))


async def until_reported(client: KubeClient, namespace: str, count: int) -> None:
    while True:
        items, _ = await client.list(SERVICE, namespace)
        conditions = [(item.get("status") or {}).get("conditions") for item in items]
        if len(items) == count and all(conditions):
            return
        await asyncio.sleep(1)


async def change_times(client: KubeClient, namespace: str, flags: argparse.Namespace) -> list[float]:
    """Seconds from the answer to a spec change to its sight in the Deployment, one change at a time."""
    seen, rng = Deployments(), random.Random(3)
    reflector = Reflector(
        client,
        resources.DEPLOYMENT,
        namespace=namespace,
        on_replace=seen.replace,
        on_event=seen.event,
        rng=rng,
    )
    watching = asyncio.create_task(reflector.run())
    await reflector.synced.wait()
    times = []
    for turn in range(flags.changes):
        name = f"service-{rng.randrange(flags.services):03d}"
        replicas = 1 if seen.replicas.get(name, 0) == 0 else 0
        began_s = time.monotonic()
        await client.merge_patch(SERVICE, namespace, name, {"spec": {"replicas": replicas}})
        await seen.until(name, replicas, 30)
        times.append(time.monotonic() - began_s)
        if turn % 50 == 49:
            print(f"  {turn + 1} changes", file=sys.stderr)
    watching.cancel()
    return times


async def measure(flags: argparse.Namespace, client: KubeClient, namespace: str, pid: int) -> dict:
    began_s = time.monotonic()
    await create_services(client, namespace, flags.services)
    await until_reported(client, namespace, flags.services)
    created_s = time.monotonic() - began_s
    print(f"{flags.services} services reported after {created_s:.0f} s", file=sys.stderr)
    await asyncio.sleep(20)
    before = operator_counts()
    await asyncio.sleep(flags.idle)
    idle = added(before, operator_counts())
    times = sorted(await change_times(client, namespace, flags))
    return {
        "services": flags.services,
        "created_s": round(created_s, 1),
        "idle_s": flags.idle,
        "idle_requests": idle,
        "idle_requests_per_s": round(sum(idle.values()) / flags.idle, 3),
        "idle_writes": sum(count for key, count in idle.items() if not key.startswith("GET")),
        "changes": len(times),
        "change_p50_s": round(statistics.median(times), 3),
        "change_p99_s": round(times[max(0, int(len(times) * 0.99) - 1)], 3),
        "change_max_s": round(times[-1], 3),
        "rss_mib": round(resident_mib(pid, "VmRSS"), 1),
        "rss_peak_mib": round(resident_mib(pid, "VmHWM"), 1),
    }


async def run(flags: argparse.Namespace) -> None:
    access = KubeAccess.from_kubeconfig(flags.kubeconfig)
    namespace = f"scale-{secrets.token_hex(4)}"
    async with KubeClient(access, user_agent="quire-bench") as client:
        await client.create(resources.NAMESPACE, None, {"metadata": {"name": namespace}})
        with tempfile.TemporaryDirectory() as folder:
            operator = start_operator(flags, namespace, Path(folder))
            try:
                print(json.dumps(await measure(flags, client, namespace, operator.pid), indent=2))
            finally:
                operator.send_signal(signal.SIGTERM)
                operator.wait(20)
                await client.delete(resources.NAMESPACE, None, namespace)


def start_operator(flags: argparse.Namespace, namespace: str, folder: Path) -> subprocess.Popen:
    platform = folder / "platform.yaml"
    platform.write_text(yaml.safe_dump({"namespace": namespace, "bindHost": "127.0.0.1"}))
    config = yaml.safe_load(flags.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = namespace
    # Paths inside a kubeconfig are relative to it, so the copy lies beside the original.
    kubeconfig = flags.kubeconfig.with_name(f".{namespace}.kubeconfig")
    kubeconfig.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "quire_operator", "--platform", platform, "--kubeconfig", kubeconfig]
    command += ["--health-port", str(PORT), "--metrics-port", str(PORT), "--log-level", "warning"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONSAFEPATH": "1"})
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        try:
            operator_counts()
            kubeconfig.unlink()
            return process
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit("the operator did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--idle", type=int, default=120, help="seconds")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
