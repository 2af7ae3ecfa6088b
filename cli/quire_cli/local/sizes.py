"""How many workers of a service there are on this machine: at first, and at most. Pure."""

from collections.abc import Iterable, Sequence

from quire_cli.manifest_files import LoadedService
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import Problem


def first_replicas(service: InferenceService) -> int:
    """With which it begins: where replicas follow demand, with the fewest that it may have."""
    scaling = service.spec.scaling
    return service.spec.replicas if scaling is None else scaling.min_replicas


def most_replicas(service: InferenceService) -> int:
    """That may run at once."""
    scaling = service.spec.scaling
    if scaling is None:
        return service.spec.replicas
    standby = scaling.standby.replicas if scaling.standby else 0
    return max(scaling.max_replicas, *(one.max_replicas or 0 for one in scaling.schedules), standby)


def num_engines(services: Iterable[InferenceService]) -> int:
    """Engines that may run at once, over all services. They share the cores, whether all of them run now or not: an engine cannot change
    its threads while it runs, and with more threads than cores all of them together are far slower than one."""
    return sum(map(most_replicas, services))


def provider_warnings(loaded: Sequence[LoadedService]) -> list[str]:
    """What spec.scaling names and no single machine has."""
    warnings = []
    for item in loaded:
        if (scaling := item.service.spec.scaling) is None:
            continue
        problems = []
        if scaling.provider in ("Keda", "Hpa"):
            message = f"there is no {scaling.provider.upper()} here; the built-in autoscaler does it, by the same rules"
            problems.append(Problem(path="spec.scaling.provider", message=message))
        warnings += [f"warning: {item.document.describe(problem)}" for problem in problems]
    return warnings


def scaling_warnings(loaded: Sequence[LoadedService], cores: int, num_devices: int) -> list[str]:
    """What spec.scaling asks for and this machine does not have."""
    warnings = provider_warnings(loaded)
    for item in loaded:
        scaling, accelerator = item.service.spec.scaling, item.service.spec.accelerator
        if scaling is None:
            continue
        problems = []
        most = most_replicas(item.service)
        if accelerator is not None and most * accelerator.count > num_devices:
            message = f"{most} workers need {most * accelerator.count} Nvidia devices, this machine has {num_devices}"
            message += "; more wait until one ends"
            problems.append(Problem(path="spec.scaling.maxReplicas", message=message))
        if accelerator is None and most > cores:
            message = (
                f"{most} workers on {cores} core{'s' if cores != 1 else ''} take turns: more of them do not answer more"
            )
            problems.append(Problem(path="spec.scaling.maxReplicas", message=message))
        warnings += [f"warning: {item.document.describe(problem)}" for problem in problems]
    return warnings
