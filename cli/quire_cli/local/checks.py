"""What `quire up` finds out before anything starts: options, files, models, devices, the port. Nothing is made here.

This module must not know processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host
from quire_cli.local.devices import check_devices, visible_devices
from quire_cli.local.models import resolve_model
from quire_cli.local.pod_plan import WorkerKind, check_program
from quire_cli.local.ports import free_ports, is_free
from quire_cli.local.served import ServedFiles, served_config, served_warnings
from quire_cli.local.sizes import scaling_warnings
from quire_cli.manifest_files import LoadedService, load_resources
from quire_cli.rendering import LOCAL_PLATFORM, render
from quire_contract.router_config import RouterConfig
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import InvalidResourceError
from quire_operator.manifests.parts import Manifest


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """What the user asked for."""

    files: tuple[Path, ...]
    """Manifests."""
    port: int
    """Port of the endpoint; 0 takes a free one."""
    address: str
    """Address that the endpoint listens on."""
    log_dir: Path | None
    """Folder for logs; None removes them with the run."""
    compute_threads: int | None
    """Compute threads of one worker; None shares the cores."""
    router_settings: Path | None = None
    """What the router does beside serving models, YAML or JSON; None: the defaults."""
    require_tenant: bool = False
    """Refuse requests without a tenant's key even while there is no tenant."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """All of it, in order."""

    services: list[InferenceService]
    kinds: list[WorkerKind]
    """Of each service, what its workers are made of."""
    router: Manifest
    """Its Deployment."""
    served: RouterConfig
    """Without endpoints."""
    files: ServedFiles
    port: int
    """Of the endpoint."""
    devices: list[str]
    """Nvidia devices of this machine."""
    warnings: list[str]
    """Lines for the user."""


def check(options: UpOptions, host: Host, cores: int) -> Checked:
    """CommandError with everything that is wrong."""
    found = load_resources(options.files)
    loaded = found.services
    if not loaded:
        raise CommandError(f"{', '.join(map(str, options.files))}: holds no InferenceService")
    files = ServedFiles(
        manifests=options.files, settings=options.router_settings, require_tenant=options.require_tenant
    )
    services = [item.service for item in loaded]
    rendered = render(loaded, LOCAL_PLATFORM)
    models = _resolve_models(loaded, host)
    served = served_config(found, services, files)
    devices = visible_devices(host.environ)
    _check_devices(loaded, devices)
    kinds = [
        WorkerKind(service=item.service.metadata.name, deployment=_deployment(manifests), model=model)
        for (item, manifests), model in zip(rendered.workers, models, strict=True)
    ]
    deployments = [*(kind.deployment for kind in kinds), _deployment(rendered.router)]
    for deployment in deployments:  # a service at zero starts one only when somebody waits for it
        check_program(deployment, host)
    return Checked(
        services=services,
        kinds=kinds,
        router=deployments[-1],
        served=served,
        files=files,
        port=_endpoint_port(options),
        devices=devices,
        warnings=[*served_warnings(found, served), *scaling_warnings(loaded, cores, len(devices))],
    )


def _resolve_models(loaded: Sequence[LoadedService], host: Host) -> list[Path]:
    errors: list[str] = []
    folders = []
    for item in loaded:
        try:
            folders.append(resolve_model(item.service, item.folder, host.hf_cache))
        except InvalidResourceError as error:
            errors += map(item.document.describe, error.problems)
    if errors:
        raise CommandError(*errors)
    return folders


def _check_devices(loaded: Sequence[LoadedService], devices: Sequence[str]) -> None:
    """The last service that asks for devices is blamed: the others come first."""
    asking = [item for item in loaded if item.service.spec.accelerator]
    try:
        check_devices([item.service for item in asking], len(devices))
    except InvalidResourceError as error:
        raise asking[-1].error(*error.problems) from None


def _endpoint_port(options: UpOptions) -> int:
    """The port that the router will listen on, checked before anything starts."""
    try:
        if options.port == 0:
            return next(free_ports(options.address))
        free = is_free(options.address, options.port)
    except OSError as error:
        message = f"--host {options.address}: cannot be listened on: {error.strerror}"
        raise CommandError(message, exit_code=EXIT_FAILED) from None
    if not free:
        message = f"port {options.port} of {options.address} is in use; stop what listens there, or choose another one with --port"
        raise CommandError(message, exit_code=EXIT_FAILED)
    return options.port


def _deployment(manifests: Sequence[Manifest]) -> Manifest:
    return next(manifest for manifest in manifests if manifest["kind"] == "Deployment")
