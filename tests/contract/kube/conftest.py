"""A small API server that a test scripts: it answers what it is told, and notes what it was asked."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from quire_contract.kube.access import KubeAccess


@dataclass
class ScriptedApi:
    """Answers requests from queues; the last answer of a queue repeats."""

    lists: list[web.Response | dict[str, Any]] = field(default_factory=list)
    watches: list[list[bytes] | int] = field(default_factory=list)
    """Each watch sends these pieces and ends, or is refused with the status; with none left, watches wait for ever."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    access: KubeAccess | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        self.asked.append(
            {
                "at_s": time.monotonic(),
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "body": body,
                "type": request.content_type,
                "authorization": request.headers.get("Authorization"),
            }
        )
        if "watch" in request.query:
            return await self._watch(request)
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        script = self.watches.pop(0) if self.watches else []
        if isinstance(script, int):
            return web.json_response({"kind": "Status", "reason": "Scripted", "message": "refused"}, status=script)
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in script:
            await response.write(piece)
        return response


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    scripted = ScriptedApi()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", scripted.answer)
    server = TestServer(app)
    await server.start_server()
    scripted.access = KubeAccess(server=str(server.make_url("")).rstrip("/"), namespace="here")
    yield scripted
    await server.close()
