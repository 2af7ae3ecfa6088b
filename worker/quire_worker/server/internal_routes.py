"""What routers and the operator ask: the prompt bundle, where KV events are, and the drain."""

import asyncio

from aiohttp import web

from quire_contract.kv_events import kv_topic, load_topic
from quire_contract.openai.errors import TYPE_INVALID, ApiError, path_not_found
from quire_worker.server.access import Access
from quire_worker.server.model_routes import json_response
from quire_worker.server.serving import Serving
from quire_worker.server.sleep_routes import SleepRoutes


class InternalRoutes:
    """Handlers for the rest of a release."""

    def __init__(
        self, serving: Serving, access: Access, pod_name: str, drain_timeout_s: float, sleep: SleepRoutes
    ) -> None:
        """`drain_timeout_s`: after so long a drain, what can go on at another worker is sent there."""
        self._serving = serving
        self.sleep = sleep
        self._drain_timeout_s = drain_timeout_s
        self._moving: asyncio.TimerHandle | None = None
        self._access = access
        self._pod_name = pod_name

    async def bundle(self, request: web.Request) -> web.Response:
        """Names the bundle; its bytes are under that name."""
        del request
        model = self._serving.loaded.model
        info = model.ready.info
        return json_response(
            {
                "digest": model.bundle_digest,
                "size_bytes": len(model.bundle_bytes),
                "served_model_names": model.names,
                "block_size": info.block_size,
                "max_model_len": model.max_model_len,
                "epoch": model.ready.epoch,
            }
        )

    async def bundle_bytes(self, request: web.Request) -> web.Response:
        """The bundle of this digest. Never changes, so it may be kept for ever."""
        model = self._serving.loaded.model
        if request.match_info["digest"] != model.bundle_digest:
            raise path_not_found(request.path)
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": f'"{model.bundle_digest}"'}
        return web.Response(body=model.bundle_bytes, headers=headers, content_type="application/octet-stream")

    async def kv_event_sources(self, request: web.Request) -> web.Response:
        """Where this worker publishes KV events and load reports. Endpoints are as bound; empty if it publishes none."""
        del request
        model = self._serving.loaded.model
        return json_response(
            {
                "events": model.ready.events_endpoint,
                "replay": model.ready.replay_endpoint,
                "topic": kv_topic(self._pod_name, model.names[0]),
                "load_topic": load_topic(self._pod_name, model.names[0]),
                "pod": self._pod_name,
                "model": model.names[0],
                "epoch": model.ready.epoch,
                "block_size": model.ready.info.block_size,
            }
        )

    async def drain(self, request: web.Request) -> web.Response:
        """Take no new requests; running ones go on, until the drain timeout if they can go on elsewhere. Returns at once."""
        self._check_control(request)
        self._serving.lifecycle.drain()
        if self._moving is None:
            self._moving = asyncio.get_running_loop().call_later(self._drain_timeout_s, self._serving.move_on)
        return self._drain_state()

    async def undrain(self, request: web.Request) -> web.Response:
        """Take requests again. 409 once the worker is terminating."""
        self._check_control(request)
        if not self._serving.lifecycle.undrain():
            raise ApiError(409, "The worker is terminating; it cannot take requests again.", code="terminating")
        if self._moving is not None:
            self._moving.cancel()
            self._moving = None
        return self._drain_state()

    def _drain_state(self) -> web.Response:
        draining = self._serving.lifecycle.phase == "draining"
        return json_response({"draining": draining, "num_requests": self._serving.num_inside})

    def _check_control(self, request: web.Request) -> None:
        if not self._access.may_control(request.remote):
            message = "Without --trust-dir only this machine may drain this worker."
            raise ApiError(403, message, type=TYPE_INVALID, code="forbidden")
