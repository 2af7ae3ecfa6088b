"""Leads the scaler's Service to the leading operator, and to no other one.

The Service has no selector; the leader writes its EndpointSlice, with one address: its own. Readiness could not say who leads, for a
standby must be ready, or no rolling update would end; a label on the leader's pod would stay behind when the process dies in its pod, and
two pods would have it while the next leader begins. A slice is taken over whole by the next leader, and goes with its Service. This module
must not know what is served.
"""

import asyncio
import ipaddress
import logging
from dataclasses import dataclass

from quire_contract import names
from quire_contract.kube.client import KubeClient, KubeError
from quire_contract.kube.resources import ENDPOINT_SLICE_V1, ENDPOINT_SLICE_V1BETA1, SERVICE, ResourceKind
from quire_contract.telemetry import Trouble, log_event
from quire_operator.manifests.parts import MANAGER, Manifest

logger = logging.getLogger(__name__)

PORT_NAME = "grpc"
_AGAIN_S = 30.0
"""What somebody else deleted or changed is put right after this."""
_RETRY_S = 1.0
_NOT_FOUND = 404


@dataclass(frozen=True, kw_only=True)
class LeaderAddress:
    """Where the leader listens."""

    namespace: str
    """The release's."""
    service: str
    """Name of the Service."""
    pod: str
    """Name of the pod."""
    ip: str
    """The pod's address, IPv4 or IPv6."""
    port: int
    """Its port."""


class LeaderEndpoint:
    """Keeps the slice as it should be, while `run` runs."""

    def __init__(self, client: KubeClient, address: LeaderAddress) -> None:
        """`client` writes only while this process leads."""
        self._client = client
        self._address = address
        self._trouble = Trouble()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.publish()
            except KubeError as error:
                if self._trouble.is_news(str(error)):
                    reason = str(error)
                    log_event(logger, logging.WARNING, "the scaler's Service does not lead here", reason=reason)
                await asyncio.sleep(_AGAIN_S if error.status == _NOT_FOUND else _RETRY_S)
            else:
                if self._trouble.is_over():
                    log_event(logger, logging.INFO, "the scaler's Service leads here", pod=self._address.pod)
                await asyncio.sleep(_AGAIN_S)

    async def publish(self) -> None:
        """Write the slice once. KubeError; 404 if there is no such Service."""
        address = self._address
        service = await self._client.get(SERVICE, address.namespace, address.service)
        is_v1 = await self._client.serves(ENDPOINT_SLICE_V1)
        kind = ENDPOINT_SLICE_V1 if is_v1 else ENDPOINT_SLICE_V1BETA1
        body = endpoint_slice(address, kind, str(service["metadata"]["uid"]))
        name = body["metadata"]["name"]
        await self._client.apply(kind, address.namespace, name, body, field_manager=MANAGER)


def endpoint_slice(address: LeaderAddress, kind: ResourceKind, service_uid: str) -> Manifest:
    """The slice with the leader's address. Pure."""
    family = f"IPv{ipaddress.ip_address(address.ip).version}"
    owner = {"apiVersion": "v1", "kind": "Service", "name": address.service, "uid": service_uid}
    target = {"kind": "Pod", "name": address.pod, "namespace": address.namespace}
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": f"{address.service}-{family.lower()}",  # a slice's family can never change
            "namespace": address.namespace,
            "labels": {
                "kubernetes.io/service-name": address.service,
                "endpointslice.kubernetes.io/managed-by": MANAGER,
                names.LABEL_MANAGED_BY: MANAGER,
            },
            "ownerReferences": [owner],
        },
        "addressType": family,
        "endpoints": [{"addresses": [address.ip], "conditions": {"ready": True}, "targetRef": target}],
        "ports": [{"name": PORT_NAME, "port": address.port, "protocol": "TCP"}],
    }
