"""Who may talk to a service's workers, and whom they may talk to: one NetworkPolicy per role of a service.

In: the release's routers and operator, whoever scrapes metrics, and workers of the same service. Out: the same but the scrapers,
DNS, and, where a model is fetched, its source. This module must not know what is said over those ports, beyond their names.
"""

from collections.abc import Mapping, Sequence

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.manifests import fetch, parts
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import Platform

_SERVING = (names.PORT_NAME_HTTP, names.PORT_NAME_EVENTS, names.PORT_NAME_REPLAY)
_DNS = 53


def network_policy(
    service: InferenceService,
    *,
    meta: Manifest,
    selector: Mapping[str, str],
    templates: Sequence[Manifest],
    platform: Platform,
) -> Manifest:
    """The policy of the pods that `selector` matches. `templates` are those of all revisions that still have pods."""
    routers = _of_release(service, names.ROLE_ROUTER, platform)
    operator = _of_release(service, parts.ROLE_OPERATOR, platform)
    siblings: Manifest = {"podSelector": {"matchLabels": dict(selector)}}
    fetching = [template for template in templates if fetch.fetches(template)]
    # By number: network plugins look for names in a pod's containers, not in its init containers.
    asked: list[str | int] = [names.PORT_NAME_HTTP, *([names.PORT_FETCH] if fetching else [])]
    ingress = [
        {"from": [routers], "ports": _tcp(_SERVING)},
        {"from": [operator], "ports": _tcp(asked)},
        {"from": [siblings]},
    ]
    if platform.metrics_from:
        scrapers = [dict(peer) for peer in platform.metrics_from]
        ingress.append({"from": scrapers, "ports": _tcp([names.PORT_NAME_HTTP])})
    egress: list[Manifest] = [
        {"to": [routers, operator, siblings]},
        {"ports": [{"port": _DNS, "protocol": protocol} for protocol in ("UDP", "TCP")]},
    ]
    if fetching:
        egress.append(_sources(fetching, platform))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": dict(selector)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _of_release(service: InferenceService, role: str, platform: Platform) -> Manifest:
    """The release's own pods; a peer without namespaceSelector means the policy's namespace, which may be another one."""
    labels = {names.LABEL_INSTANCE: platform.release, names.LABEL_ROLE: role}
    peer: Manifest = {"podSelector": {"matchLabels": labels}}
    if platform.namespace and platform.namespace != service.metadata.namespace:
        peer["namespaceSelector"] = {"matchLabels": {parts.NAMESPACE_KEY: platform.namespace}}
    return peer


def _sources(templates: Sequence[Manifest], platform: Platform) -> Manifest:
    """443, and the ports of endpoints and proxies that the templates name."""
    ports = sorted({port for template in templates for port in fetch.ports_reached(template)})
    rule: Manifest = {"ports": _tcp(ports)}
    if platform.model_cidrs:
        rule["to"] = [{"ipBlock": {"cidr": cidr}} for cidr in platform.model_cidrs]
    return rule


def _tcp(ports: Sequence[str | int]) -> list[Manifest]:
    return [{"port": port, "protocol": "TCP"} for port in ports]
