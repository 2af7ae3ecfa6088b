"""The objects that should exist, as a pure function of resources, revisions and platform.

`quire up` carries out the same manifests with local processes. This module must not know how objects are applied, or by whom.
"""

from collections.abc import Sequence

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.model_uri import parse_model_uri
from quire_operator.api.validation import InvalidResourceError, NotYetSupportedError, Problem, unsupported_fields
from quire_operator.manifests import fetch, parts, router, worker
from quire_operator.manifests.parts import Manifest
from quire_operator.manifests.placement import spot_problems
from quire_operator.platform import Platform
from quire_operator.revisions import Revision

ROLES = (names.ROLE_WORKER,)


def desired_state(service: InferenceService, revisions: Sequence[Revision], platform: Platform) -> list[Manifest]:
    """The objects of one service: what its workers need, then one Deployment per revision, in the order given.

    A PersistentVolumeClaim among them is to be created if missing and then left alone; the namespace's services share it.
    Raises NotYetSupportedError if the service asks for parts that this version or this platform does not have.
    """
    refuse_unsupported(service, platform)
    manifests = []
    if platform.model_cache.kind == "PersistentVolumeClaim" and fetch.is_fetched(service):
        manifests.append(fetch.cache_claim(service.metadata.namespace, platform))
    for role in ROLES:
        account = worker.account_name(service)
        labels = worker.object_labels(service, role)
        manifests.append(parts.service_account(account, service.metadata.namespace, labels))
        manifests.append(worker.headless_service(service, role))
        manifests.append(worker.disruption_budget(service, role, platform))
        if platform.network_policies:
            templates = [revision.template for revision in revisions if revision.role == role]
            manifests.append(worker.network_policy(service, role, templates, platform))
    for revision in revisions:
        deployment = worker.deployment(
            service,
            name=revision.deployment_name(service),
            role=revision.role,
            revision=revision.name,
            replicas=revision.replicas,
            template=revision.template,
        )
        manifests.append(deployment)
    return [parts.owned(manifest, service) for manifest in manifests]


def router_state(services: Sequence[InferenceService], platform: Platform) -> list[Manifest]:
    """The objects of the release's router fleet, which serves all of `services`. Raises InvalidResourceError on a name served twice."""
    conflicts = name_conflicts(services)
    if conflicts:
        raise InvalidResourceError([problem for _, problem in conflicts])
    return [
        router.service_account(platform),
        router.role(platform),
        router.role_binding(platform),
        router.service(platform),
        router.disruption_budget(platform),
        router.config_map(services, platform),
        router.deployment(platform),
    ]


def name_conflicts(services: Sequence[InferenceService]) -> list[tuple[InferenceService, Problem]]:
    """Served names that more than one service claims: the first in the list keeps it, each further one has the problem."""
    owners: dict[str, InferenceService] = {}
    problems = []
    for service in services:
        for name in service.served_names:
            owner = owners.setdefault(name, service)
            if owner is not service:
                is_alias = name != service.served_name
                fix = "remove the alias" if is_alias else "give it another spec.model.name"
                message = (
                    f"InferenceService {service.metadata.name!r} serves {name!r}, "
                    f"which {owner.metadata.name!r} serves already; {fix}"
                )
                path = "spec.model.aliases" if is_alias else "spec.model.name"
                problems.append((service, Problem(path=path, message=message)))
    return problems


def refuse_unsupported(service: InferenceService, platform: Platform) -> None:
    """Raises NotYetSupportedError naming every field that nothing here would honour."""
    problems = unsupported_fields(service)
    scheme = parse_model_uri(service.spec.model.uri).scheme
    if scheme not in platform.model_sources:
        known = ", ".join(f"{name}:" for name in sorted(platform.model_sources))
        message = f"{scheme}:// is not supported by this version: this release fetches from {known}"
        problems.append(Problem(path="spec.model.uri", message=message))
    problems += spot_problems(service.spec.placement, platform.spot)
    if problems:
        raise NotYetSupportedError(problems)
