"""What the leading operator does for KEDA: serves the external scaler, and leads the Service here. Must not know where demand is from."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from quire_contract.kube.client import KubeClient
from quire_contract.telemetry import log_event
from quire_operator.autoscaler_watch import POLL_S
from quire_operator.keda.endpoint import LeaderAddress, LeaderEndpoint
from quire_operator.keda.scaler import DemandSource, ExternalScaler
from quire_operator.keda.server import ScalerTls, serve_scaler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KedaSettings:
    """How the scaler is served."""

    host: str
    """Address to listen on."""
    port: int
    """Port to listen on; 0: any."""
    tls: ScalerTls | None = None
    """None: plain, for the NetworkPolicy decides who comes in."""
    leader: LeaderAddress | None = None
    """Where the Service is to lead; None: there is none to be led."""
    on_port: Callable[[int], None] = lambda port: None
    """Told the port once it listens."""
    look_s: float = POLL_S
    """How often it is looked whether KEDA or HPAs have come or gone."""


async def serve_keda(client: KubeClient, source: DemandSource, settings: KedaSettings) -> None:
    """Until cancelled. OSError if the port is taken, ScalerTlsError if the files are bad."""
    handler = ExternalScaler(source).handler()
    async with serve_scaler(handler, host=settings.host, port=settings.port, tls=settings.tls) as port:
        log_event(logger, logging.INFO, "serving KEDA", port=port, tls=settings.tls is not None)
        settings.on_port(port)
        if settings.leader is None:
            await asyncio.get_running_loop().create_future()
        else:
            await LeaderEndpoint(client, replace(settings.leader, port=port)).run()
