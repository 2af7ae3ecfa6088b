"""Operators against a real API server: in this process, for speed and for stopping them anywhere, or as processes of their own."""

import asyncio
import gc
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.forgotten import collect_forgotten_connections

from quire_contract import names
from quire_contract.kube import resources
from quire_contract.kube.access import KubeAccess
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.reflector import Reflector
from quire_operator.handlers import copy_of, run_kopf
from quire_operator.keda.service import KedaSettings
from quire_operator.machine import Machine, Scope
from quire_operator.metrics import Metrics
from quire_operator.platform import Platform

Document = dict[str, Any]

POLL_S = 0.05
NUM_SAME = 15

CHILD_KINDS = (
    resources.SERVICE_ACCOUNT,
    resources.SERVICE,
    resources.PDB_V1BETA1,
    resources.PDB_V1,
    resources.NETWORK_POLICY,
    resources.CONTROLLER_REVISION,
    resources.DEPLOYMENT,
    resources.CONFIG_MAP,
    resources.SECRET,
)


class Killed(BaseException):
    """The operator process ended here."""


class WriteCounter:
    """Counts the requests that change something (no Events); ends the operator after one of them, if told to."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.writes: list[tuple[str, str, int]] = []
        self.requests: list[tuple[str, str, int]] = []
        self.is_dead = False
        self._kill_after = kill_after

    def before(self, method: str) -> None:
        if self.is_dead:
            raise Killed

    def observe(self, method: str, kind: resources.ResourceKind | None, status: int) -> None:
        entry = (method, kind.kind if kind else "", status)
        self.requests.append(entry)
        if method in ("GET", "WATCH") or entry[1] == "Event":
            return
        self.writes.append(entry)
        if len(self.writes) == self._kill_after:
            self.is_dead = True
            raise Killed


class Cluster:
    """The API server, one namespace of it, and operators that look at that namespace."""

    def __init__(self, access: KubeAccess, client: KubeClient, namespace: str) -> None:
        self.access = replace(access, namespace=namespace)
        self.client = client
        self.namespace = namespace
        self.platform = Platform(namespace=namespace)

    @asynccontextmanager
    async def operator(
        self,
        counter: WriteCounter | None = None,
        *,
        kopf: bool = False,
        keda: KedaSettings | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> AsyncIterator[asyncio.Task]:
        """An operator; its task. Without `kopf` a reflector stands in for it, which starts and stops faster."""
        counter = counter or WriteCounter()
        async with KubeClient(
            self.access, user_agent="quire-test", observe=counter.observe, before=counter.before
        ) as client:
            machine = Machine(
                client,
                platform=self.platform,
                scope=Scope(namespaces=(self.namespace,)),
                metrics=Metrics(),
                watch_documents=self._kopf if kopf else lambda listener: self._reflect(client, listener),
                rng=random.Random(1),
                keda=keda,
                now=now,
            )
            task = asyncio.create_task(machine.run())
            ready = asyncio.create_task(machine.working.wait())
            await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED, timeout=120)
            ready.cancel()
            try:
                yield task
            finally:
                task.cancel()
                await asyncio.wait([task])
                collect_forgotten_connections()
                if not task.cancelled() and (error := task.exception()) is not None and not _is_only_killed(error):
                    raise error

    async def _kopf(self, listener) -> None:
        def give_back_signals() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().remove_signal_handler(number)

        await run_kopf(self.access, [self.namespace], listener, give_back_signals)

    async def _reflect(self, client: KubeClient, listener) -> None:
        reflectors = [
            Reflector(
                client,
                kind,
                namespace=self.namespace,
                on_replace=lambda items: [listener(None, copy_of(item)) for item in items],
                on_event=lambda event, item: listener(event, copy_of(item)),
                rng=random.Random(2),
            )
            for kind in (resources.INFERENCE_SERVICE, resources.MODEL_ROUTE, resources.TENANT)
        ]
        await asyncio.gather(*(reflector.run() for reflector in reflectors))

    async def create(self, kind: resources.ResourceKind, name: str, spec: Document, **metadata: Any) -> Document:
        body = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
        return await self.client.create(kind, self.namespace, body)

    async def service(self, name: str = "demo", **spec: Any) -> Document:
        spec = {"model": {"uri": "pvc://models/llama"}, **spec}
        return await self.create(resources.INFERENCE_SERVICE, name, spec)

    async def get(self, kind: resources.ResourceKind, name: str) -> Document | None:
        try:
            return await self.client.get(kind, self.namespace, name)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def condition(self, kind: resources.ResourceKind, name: str, type_: str) -> Document:
        """The condition, or an empty one."""
        document = await self.get(kind, name)
        conditions = ((document or {}).get("status") or {}).get("conditions") or []
        return next((condition for condition in conditions if condition["type"] == type_), {})

    async def until(self, check: Callable[[], Awaitable[Any]], timeout_s: float = 120.0) -> Any:
        """What `check` gives once it gives something true."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := await check()):
            assert time.monotonic() < deadline_s, f"not so within {timeout_s} s: {check}"
            await asyncio.sleep(POLL_S)
        return found

    async def settled(self) -> dict[tuple[str, str], Document]:
        """The objects, once they have been the same for a while: that nothing happens can only be watched.

        What an owner left behind is still to be collected by the controller manager, which may be busy.
        """
        before, num_same = None, 0
        while num_same < NUM_SAME:
            now = await self.objects()
            num_same = num_same + 1 if now == before and not _orphans(now) else 0
            before = now
            await asyncio.sleep(POLL_S)
        return before

    async def second_after(self, document: Document) -> None:
        """Wait until what is made now is younger than `document`: creation times are whole seconds."""
        created = document["metadata"]["creationTimestamp"]

        async def is_later() -> bool:
            body = {"metadata": {"generateName": "clock-"}}
            probe = await self.client.create(resources.CONFIG_MAP, self.namespace, body)
            await self.client.delete(resources.CONFIG_MAP, self.namespace, probe["metadata"]["name"])
            return probe["metadata"]["creationTimestamp"] > created

        await self.until(is_later)

    async def objects(self) -> dict[tuple[str, str], Document]:
        """All that the operator made or wrote, without what differs from run to run."""
        found = {}
        for kind in (*CHILD_KINDS, resources.INFERENCE_SERVICE):
            try:
                items, _ = await self.client.list(kind, self.namespace)
            except KubeError as error:
                if error.status != 404:  # a version of a kind that this server does not have
                    raise
                continue
            for item in items:
                if item["metadata"]["name"] not in ("kube-root-ca.crt", "default") and not _is_token(item):
                    found[kind.kind, item["metadata"]["name"]] = self._plain(item)
        return found

    def _plain(self, item: Document) -> Document:
        meta = item["metadata"]
        item = dict(item)
        item["metadata"] = {
            key: meta[key] for key in ("name", "labels", "annotations", "generation") if meta.get(key) is not None
        }
        annotations = dict(meta.get("annotations") or {})
        if annotations.pop(names.ANNOTATION_APPLIED, None):  # a digest over the owner's uid, too
            item["metadata"]["annotations"] = {**annotations, names.ANNOTATION_APPLIED: "some digest"}
        item["metadata"]["owners"] = sorted((o["kind"], o["name"]) for o in meta.get("ownerReferences") or [])
        item.pop("secrets", None)
        if item["kind"] == "Secret":
            item["data"] = sorted(item["data"])
        if item["kind"] != "InferenceService":
            item.pop("status", None)
        return _without_run(item, self.namespace)


def _orphans(objects: dict[tuple[str, str], Document]) -> list[tuple[str, str]]:
    """Those whose InferenceService is gone."""
    services = {name for kind, name in objects if kind == resources.INFERENCE_SERVICE.kind}
    return [
        key
        for key, item in objects.items()
        for kind, name in item["metadata"]["owners"]
        if kind == resources.INFERENCE_SERVICE.kind and name not in services
    ]


def _is_token(item: Document) -> bool:
    return item.get("type") == "kubernetes.io/service-account-token"


def _is_only_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_only_killed, error.exceptions))
    return isinstance(error, Killed)


def _without_run(value: Any, namespace: str) -> Any:
    """Without times and random names."""
    if isinstance(value, dict):
        return {
            key: _without_run(item, namespace)
            for key, item in value.items()
            if key not in ("lastTransitionTime", "startedAt", "stepStartedAt", "message", "uid", "creationTimestamp")
        }
    if isinstance(value, list):
        return [_without_run(item, namespace) for item in value]
    return value.replace(namespace, "NAMESPACE") if isinstance(value, str) else value


@pytest.fixture(scope="package", autouse=True)
def frozen_objects() -> None:
    """What has been imported is not looked at again by each collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def clusters(control_plane, install_crds) -> AsyncIterator[Callable[[], Awaitable[Cluster]]]:
    """Makes clusters: each a namespace of its own."""
    if not control_plane.has_controllers:
        pytest.skip("no controller manager: owned objects are not collected here")
    access = KubeAccess.from_kubeconfig(Path(control_plane.kubeconfig))
    made: list[str] = []
    async with KubeClient(access, user_agent="quire-test") as client:

        async def make() -> Cluster:
            name = f"operator-{secrets.token_hex(5)}"
            await client.create(resources.NAMESPACE, None, {"metadata": {"name": name}})
            made.append(name)
            return Cluster(access, client, name)

        yield make
        for name in made:
            await client.delete(resources.NAMESPACE, None, name)
    collect_forgotten_connections()  # of whatever else was cancelled


@pytest.fixture
async def cluster(clusters) -> Cluster:
    return await clusters()


@pytest.fixture
def counter() -> WriteCounter:
    return WriteCounter()


@pytest.fixture
def killer() -> Callable[[int], WriteCounter]:
    """Makes counters that end the operator after so many writes."""
    return WriteCounter


class OperatorProcess:
    """An operator as it runs in its pod."""

    def __init__(self, process: subprocess.Popen, identity: str, log: Path) -> None:
        self.process, self.identity, self._log = process, identity, log

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def start_operator(control_plane, cluster, tmp_path) -> Iterator[Callable[[str], OperatorProcess]]:
    """Starts operator processes that look at the cluster's namespace."""
    started: list[OperatorProcess] = []
    config = yaml.safe_load(Path(control_plane.kubeconfig).read_text())
    config["contexts"][0]["context"]["namespace"] = cluster.namespace
    for entries, keys in (
        ("clusters", ("certificate-authority",)),
        ("users", ("client-certificate", "client-key")),
    ):
        inner = config[entries][0][entries[:-1]]
        for key in keys:
            if key in inner:
                inner[key] = str((Path(control_plane.kubeconfig).parent / inner[key]).resolve())
    kubeconfig, platform = tmp_path / "kubeconfig", tmp_path / "platform.yaml"
    kubeconfig.write_text(yaml.safe_dump(config))
    platform.write_text(yaml.safe_dump({"namespace": cluster.namespace, "bindHost": "127.0.0.1"}))

    def start(identity: str) -> OperatorProcess:
        log = tmp_path / f"{identity}.log"
        command = [sys.executable, "-m", "quire_operator", "--kubeconfig", kubeconfig, "--platform", platform]
        command += ["--identity", identity, "--health-port", "0", "--metrics-port", "0"]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file, env={**os.environ, "PYTHONSAFEPATH": "1"})
        started.append(OperatorProcess(process, identity, log))
        return started[-1]

    yield start
    for operator in started:
        operator.process.kill()
        operator.process.wait()
