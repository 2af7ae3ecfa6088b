"""`quire up`: from manifests to running processes. Puts the parts together and tells the user what there is.

This module must not know how a process is kept running.
"""

import asyncio
import itertools
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host
from quire_cli.local.cores import threads_per_engine, usable_cores
from quire_cli.local.devices import check_devices, visible_devices
from quire_cli.local.endpoints import EndpointFile
from quire_cli.local.models import resolve_model
from quire_cli.local.pod import PodFailedError
from quire_cli.local.pod_plan import LOOPBACK, PodPlan, Surroundings, plan_router, plan_workers, with_admin
from quire_cli.local.ports import free_ports, is_free
from quire_cli.local.progress import progress_for, say
from quire_cli.local.run_folder import RunFolder, run_folder, write_admin
from quire_cli.local.served import FileFollower, ServedFiles, served_config, served_warnings
from quire_cli.local.supervisor import Supervisor
from quire_cli.manifest_files import LoadedService, load_resources
from quire_cli.rendering import LOCAL_PLATFORM, Rendered, render
from quire_contract.router_config import RouterConfig
from quire_contract.trust import Trust
from quire_operator.api.validation import InvalidResourceError
from quire_operator.manifests import parts, router
from quire_operator.manifests.parts import Manifest

_CACHE_FOLDER = "quire"


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


def run_up(options: UpOptions, host: Host, console: Console) -> None:
    """Serves until the user stops it. Raises CommandError if that cannot begin, or cannot go on."""
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
    _check_devices(loaded, host)
    port = _endpoint_port(options)
    for line in served_warnings(found, served):
        say(console, line)
    with run_folder(options.log_dir) as folder:
        Trust.generate().write(folder.trust)
        surroundings = _surroundings(options, rendered, folder, host)
        workers = _plan_workers(rendered, models, surroundings)
        router_plan = plan_router(_deployment(rendered.router), options.address, port, surroundings)
        admin_url = f"http://{LOOPBACK}:{next(surroundings.free_ports)}"
        write_admin(folder, admin_url, secrets.token_urlsafe(32))
        router_plan = with_admin(router_plan, admin_url, folder.admin_token)
        endpoints = EndpointFile(folder.config / router.CONFIG_FILE, served)
        follower = FileFollower(files, services, endpoints.serve, lambda line: say(console, line))
        supervisor = Supervisor(
            workers=workers,
            router=router_plan,
            endpoints=endpoints,
            beside=follower.run,
            logs=folder.logs,
            cwd=folder.path,
            progress=progress_for(console),
            on_ready=lambda: _tell_ready(console, router_plan, served, len(workers), folder, admin_url),
        )
        try:
            asyncio.run(supervisor.run())
        except PodFailedError as error:
            raise _failure(error, options.log_dir) from None
    say(console, "stopped")


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


def _check_devices(loaded: Sequence[LoadedService], host: Host) -> None:
    """The last service that asks for devices is blamed: the others come first."""
    asking = [item for item in loaded if item.service.spec.accelerator]
    try:
        check_devices([item.service for item in asking], len(visible_devices(host.environ)))
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


def _surroundings(options: UpOptions, rendered: Rendered, folder: RunFolder, host: Host) -> Surroundings:
    num_engines = sum(_deployment(manifests)["spec"]["replicas"] for _, manifests in rendered.workers)
    cache = host.user_cache / _CACHE_FOLDER
    cache.mkdir(parents=True, exist_ok=True)
    return Surroundings(
        host=host,
        folders={parts.VOLUME_TRUST: folder.trust, router.VOLUME_CONFIG: folder.config, parts.VOLUME_CACHE: cache},
        pod_folders=(folder.pods / str(number) for number in itertools.count()),
        compute_threads=options.compute_threads or threads_per_engine(usable_cores(), num_engines),
        free_ports=free_ports(LOOPBACK),
        devices=iter(visible_devices(host.environ)),
    )


def _plan_workers(rendered: Rendered, models: Sequence[Path], surroundings: Surroundings) -> list[PodPlan]:
    return [
        plan
        for (item, manifests), model in zip(rendered.workers, models, strict=True)
        for plan in plan_workers(_deployment(manifests), item.service.metadata.name, model, surroundings)
    ]


def _deployment(manifests: Sequence[Manifest]) -> Manifest:
    return next(manifest for manifest in manifests if manifest["kind"] == "Deployment")


def _tell_ready(
    console: Console, plan: PodPlan, served: RouterConfig, num_workers: int, folder: RunFolder, admin_url: str
) -> None:
    """The line that begins with "ready:" is what scripts wait for."""
    base = plan.readiness.url.rpartition("/")[0]
    body = {"model": served.models[0].name, "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
    known = [entry.name for entry in served.models] + [route.model for route in served.routes]
    key, why = "", f"curl {base}/debug/route"
    if served.tenants or served.require_tenant:  # who may not see each other's requests
        key = " -H 'authorization: Bearer KEY'"
        why = f'curl {admin_url}/debug/route -H "authorization: Bearer $(cat {folder.admin_token})"'
    lines = (
        f"ready: {base}/v1 ({', '.join(known)}; {num_workers} workers)",
        f"  try:  curl {base}/v1/chat/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'",
        f"  why:  {why}",
        f"  logs: {folder.logs}",
        f"  stop: Ctrl-C, or kill {os.getpid()}",
    )
    for line in lines:
        say(console, line)


def _failure(error: PodFailedError, log_dir: Path | None) -> CommandError:
    lines = [f"{error.pod} cannot start ({error.reason}); it said:", *(f"    {line}" for line in error.tail)]
    if log_dir is not None:
        lines.append(f"the whole log: {error.log}")
    return CommandError("\n".join(lines), exit_code=EXIT_FAILED)
