"""`quire pause` and `quire resume`: whether the operator looks after one service. This module must not know what the operator does."""

from quire_cli.cluster.found import get_service, is_paused
from quire_cli.cluster.rollback import FIELD_MANAGER
from quire_contract import names
from quire_contract.kube.client import KubeClient
from quire_contract.kube.resources import INFERENCE_SERVICE


async def set_paused(client: KubeClient, namespace: str, name: str, *, paused: bool) -> list[str]:
    """Writes or removes the annotation. What to tell the user."""
    if is_paused(await get_service(client, namespace, name)) == paused:
        return [f"{name} {'is paused already' if paused else 'is not paused'}"]
    body = {"metadata": {"annotations": {names.ANNOTATION_PAUSED: "true" if paused else None}}}
    await client.merge_patch(INFERENCE_SERVICE, namespace, name, body, field_manager=FIELD_MANAGER)
    if paused:
        return [
            f"{name} is paused: the operator changes nothing of it, whatever its spec says; its pods go on serving",
            f"Go on with: quire resume {name} -n {namespace}",
        ]
    return [f"{name} is looked after again; what its spec says now is carried out"]
