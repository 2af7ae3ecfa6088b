"""Scalers on real sockets."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from quire_operator.keda.scaler import ExternalScaler
from quire_operator.keda.server import ScalerTls, serve_scaler

from .wire import KedaClient
from .world import Source


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def serve(source: Source) -> AsyncIterator[Callable[..., Any]]:
    """Serves the source, and gives the scaler and its port."""
    async with AsyncExitStack() as stack:

        async def start(tls: ScalerTls | None = None, repeat_s: float = 60.0, port: int = 0, max_streams: int = 9):
            scaler = ExternalScaler(source, repeat_s=repeat_s, max_streams=max_streams)
            return scaler, await stack.enter_async_context(
                serve_scaler(scaler.handler(), host="127.0.0.1", port=port, tls=tls)
            )

        yield start


@pytest.fixture
async def keda(serve) -> AsyncIterator[KedaClient]:
    """A client of a plain scaler."""
    _, port = await serve()
    async with KedaClient(f"127.0.0.1:{port}") as client:
        yield client
