"""Nvidia devices of this machine, given to workers one by one: the device plugin's part.

This module must not talk to a driver: device files and CUDA_VISIBLE_DEVICES say enough.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from quire_cli.local.sizes import first_replicas
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import InvalidResourceError, Problem

VARIABLE = "CUDA_VISIBLE_DEVICES"
RESOURCE = "nvidia.com/gpu"
_DEV = Path("/dev")


def visible_devices(environ: Mapping[str, str], dev: Path = _DEV) -> list[str]:
    """Names of devices as CUDA_VISIBLE_DEVICES takes them: those that the user left visible, else all."""
    if VARIABLE in environ:
        return [name for name in (part.strip() for part in environ[VARIABLE].split(",")) if name and name != "-1"]
    numbers = [int(match[1]) for path in dev.glob("nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name))]
    return [str(number) for number in sorted(numbers)]


def check_devices(services: Sequence[InferenceService], num_devices: int) -> None:
    """Raises InvalidResourceError if the machine has too few devices for all workers together."""
    needed = sum(
        first_replicas(service) * service.spec.accelerator.count for service in services if service.spec.accelerator
    )
    if needed > num_devices:
        has = f"has {num_devices}" if num_devices else "has none"
        message = (
            f"needs {needed} Nvidia devices for all workers, this machine {has}; lower spec.replicas, or remove it"
        )
        raise InvalidResourceError([Problem(path="spec.accelerator", message=message)])
