"""A pod is marked before its worker is told to drain, and a worker is told to go on before the mark goes."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from aiohttp import web

from quire_contract import names
from quire_contract.kube.access import KubeAccess
from quire_contract.kube.client import KubeClient
from quire_operator import pod_state
from quire_operator.cache import ClusterCache
from quire_operator.drain_plan import COST_DRAINING, COST_EMPTY, Leaving
from quire_operator.drainer import Drainer
from quire_operator.keys import service_key
from tests.operator.machine.scaling_world import Worker, served, some_address

POLL_S = 0.01
MAX_POLLS = 6000
KEY = service_key("team", "demo")
GOES = {"p": Leaving(why="ScaleDown", cost=COST_DRAINING)}


class Scene:
    """One service with one pod; a worker and an API server on real sockets, which note what comes in which order."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.worker, self.api = Worker("p"), some_address()
        self.worker.num_requests = 1
        self.status = 200
        self.calls: list[str] = []
        self.told: list[object] = []
        self.cache = ClusterCache(lambda key: None)
        self.cache.documents.put(self._object("InferenceService", "demo"))
        self.pod = self._object("Pod", "p")
        self.pod["metadata"]["labels"] = {names.LABEL_SERVICE: "demo"}
        conditions = [{"type": "Ready", "status": "True"}]
        self.pod["status"] = {"phase": "Running", "podIP": self.worker.address, "conditions": conditions}
        self.cache.pods.put(self.pod)

    @staticmethod
    def _object(kind: str, name: str) -> dict:
        meta = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1"}
        return {"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": {}}

    @property
    def annotations(self) -> dict[str, str]:
        (pod,) = self.cache.pods.of(("team", "demo"))
        return pod["metadata"].get("annotations", {})

    async def _patch(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["metadata"]["annotations"]
        self.calls.append("marked" if wanted.get(pod_state.ANNOTATION_LEAVING) else "patched")
        if self.status != 200:
            return web.json_response({"kind": "Status", "reason": "Forbidden"}, status=self.status)
        kept = {**self.annotations, **wanted}
        meta = {**self.pod["metadata"], "annotations": {key: text for key, text in kept.items() if text is not None}}
        meta["resourceVersion"] = str(int(self.pod["metadata"]["resourceVersion"]) + 1)
        self.pod = {**self.pod, "metadata": meta}
        return web.json_response(self.pod)

    @asynccontextmanager
    async def running(self):
        """A drainer at work."""
        app = web.Application()
        app.router.add_patch("/api/v1/namespaces/team/pods/p", self._patch)
        access = KubeAccess(server=f"http://{self.api}:8001", namespace="team")
        async with (
            served(app, self.api, 8001),
            served(self.worker.app(), self.worker.address, names.PORT_HTTP),
            KubeClient(access, user_agent="quire-test") as client,
        ):
            drainer = Drainer(
                client, cache=self.cache, enqueue=self.told.append, token=lambda: "secret", now=lambda: self.now
            )
            task = asyncio.create_task(drainer.run())
            try:
                yield drainer
            finally:
                task.cancel()
                await asyncio.wait([task])


async def until(check) -> None:
    for _ in range(MAX_POLLS):
        if check():
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not so after {MAX_POLLS} polls")


async def test_pod_is_marked_then_drained_and_told_of_when_it_is_empty() -> None:
    scene = Scene()
    async with scene.running() as drainer:
        drainer.want(KEY, GOES)
        await until(lambda: scene.worker.is_draining)
        marked = dict(scene.annotations)
        scene.worker.num_requests = 0
        await until(lambda: drainer.empty(KEY))
        drainer.want(KEY, {"p": Leaving(why="ScaleDown", cost=COST_EMPTY)})
        await until(lambda: scene.annotations[names.ANNOTATION_DELETION_COST] == str(COST_EMPTY))

    assert marked == {
        pod_state.ANNOTATION_LEAVING: "2026-01-01T00:00:00Z ScaleDown",
        names.ANNOTATION_DELETION_COST: str(COST_DRAINING),
    }
    assert scene.calls == ["marked", "patched"]
    assert scene.told[:1] == [KEY]
    assert scene.worker.tokens == {"secret"}


async def test_pod_that_is_needed_again_goes_on_before_its_mark_goes() -> None:
    scene = Scene()
    async with scene.running() as drainer:
        drainer.want(KEY, GOES)
        await until(lambda: scene.worker.is_draining)

        drainer.want(KEY, {})
        await until(lambda: not scene.annotations)

    assert scene.worker.calls[-1] == "DELETE"
    assert not scene.worker.is_draining


async def test_without_the_right_to_mark_pods_no_worker_is_told_and_the_decision_is_taken_without() -> None:
    scene = Scene()
    scene.status = 403
    async with scene.running() as drainer:
        drainer.want(KEY, GOES)
        await until(lambda: not drainer.may_mark)

        assert scene.worker.calls == []
        assert scene.told == [KEY]
        scene.now += timedelta(minutes=11)
        assert drainer.may_mark
