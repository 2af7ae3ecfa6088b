"""/health, /ready and /metrics of the operator. This module must not know what makes it ready."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from quire_contract import names
from quire_operator.metrics import Metrics


@asynccontextmanager
async def serve_health(
    metrics: Metrics, is_ready: Callable[[], bool], *, host: str, ports: tuple[int, ...]
) -> AsyncIterator[None]:
    """Answer on each of `ports` while entered. OSError if one is taken."""

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_ready() else web.Response(text="not ready\n", status=503)

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get(names.PATH_HEALTH, health)
    app.router.add_get(names.PATH_READY, ready)
    app.router.add_get(names.PATH_METRICS, scrape)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        for port in dict.fromkeys(ports):
            await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
