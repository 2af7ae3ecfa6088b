"""`quire up`: from manifests to running processes. Puts the parts together and tells the user what there is.

This module must not know how a process is kept running.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host
from quire_cli.local.checks import Checked, UpOptions, check
from quire_cli.local.cores import threads_per_engine, usable_cores
from quire_cli.local.endpoints import EndpointFile
from quire_cli.local.pod import PodFailedError
from quire_cli.local.pod_plan import PodPlan, Surroundings, WorkerKind, plan_router, plan_worker, with_admin
from quire_cli.local.progress import plural, progress_for, say
from quire_cli.local.run_folder import SCALING_FILE, RunFolder, run_folder, write_admin
from quire_cli.local.scaling import LocalRouter, LocalScaling
from quire_cli.local.served import FileFollower
from quire_cli.local.sizes import first_replicas, num_engines
from quire_cli.local.supervisor import Places, Supervisor
from quire_cli.local.supplies import LOOPBACK, Share, Supplies
from quire_contract.trust import Trust
from quire_operator.api.inference_service import InferenceService
from quire_operator.manifests import parts, router

_CACHE_FOLDER = "quire"


def run_up(options: UpOptions, host: Host, console: Console) -> None:
    """Serves until the user stops it. Raises CommandError if that cannot begin, or cannot go on."""
    checked = check(options, host, usable_cores())
    for line in checked.warnings:
        say(console, line)
    with run_folder(options.log_dir) as folder:
        try:
            asyncio.run(_serve(options, checked, folder, host, console))
        except PodFailedError as error:
            raise _failure(error, options.log_dir) from None
    say(console, "stopped")


async def _serve(options: UpOptions, checked: Checked, folder: RunFolder, host: Host, console: Console) -> None:
    trust = Trust.generate()
    trust.write(folder.trust)
    supplies = Supplies(folder=folder.pods, devices=checked.devices, ports_taken=[checked.port])
    planner = _Planner(_surroundings(folder, host), options.compute_threads, checked.services)
    place = _router_place(options, checked, planner.surroundings, supplies, folder)
    endpoints = EndpointFile(folder.config / router.CONFIG_FILE, checked.served)
    progress = progress_for(console)
    numbers = map(first_replicas, checked.services)
    supervisor = Supervisor(
        workers=list(zip(checked.kinds, numbers, strict=True)),
        plan=planner.plan,
        supplies=supplies,
        router=place.plan,
        endpoints=endpoints,
        places=Places(logs=folder.logs, cwd=folder.path, token=trust.token),
        progress=progress,
        on_ready=lambda: _tell_ready(console, place, checked, supervisor.num_ready, folder),
    )
    scaling = LocalScaling(
        checked.services,
        supervisor=supervisor,
        router=LocalRouter(name=place.plan.name, url=place.base, token=trust.token),
        note=progress.note,
        file=folder.path / SCALING_FILE,
    )

    def follow(services: Sequence[InferenceService]) -> None:
        planner.services = services
        scaling.follow(services)

    follower = FileFollower(checked.files, checked.services, endpoints.serve, follow, lambda line: say(console, line))
    await supervisor.run(follower.run(), scaling.run())


class _Planner:
    """Plans workers, with their share of the cores as the services are now."""

    def __init__(self, surroundings: Surroundings, threads: int | None, services: Sequence[InferenceService]) -> None:
        """`threads`: of each worker, as the user said; None: they share the cores."""
        self.surroundings = surroundings
        self.services = services
        self._threads = threads

    def plan(self, kind: WorkerKind, index: int, share: Share) -> PodPlan:
        """One worker."""
        threads = self._threads or threads_per_engine(usable_cores(), num_engines(self.services))
        return plan_worker(kind, index, share, replace(self.surroundings, compute_threads=threads))


@dataclass(frozen=True, kw_only=True)
class _RouterPlace:
    plan: PodPlan
    admin_url: str

    @property
    def base(self) -> str:
        return self.plan.readiness.url.rpartition("/")[0]


def _surroundings(folder: RunFolder, host: Host) -> Surroundings:
    cache = host.user_cache / _CACHE_FOLDER
    cache.mkdir(parents=True, exist_ok=True)
    folders = {parts.VOLUME_TRUST: folder.trust, router.VOLUME_CONFIG: folder.config, parts.VOLUME_CACHE: cache}
    return Surroundings(host=host, folders=folders, compute_threads=1)


def _router_place(
    options: UpOptions, checked: Checked, surroundings: Surroundings, supplies: Supplies, folder: RunFolder
) -> _RouterPlace:
    share = supplies.take(num_ports=1)
    assert share is not None, "it needs no device"
    admin_url = f"http://{LOOPBACK}:{share.ports[0]}"
    write_admin(folder, admin_url, secrets.token_urlsafe(32))
    plan = plan_router(checked.router, options.address, checked.port, share, surroundings)
    return _RouterPlace(plan=with_admin(plan, admin_url, folder.admin_token), admin_url=admin_url)


def _tell_ready(console: Console, place: _RouterPlace, checked: Checked, num_workers: int, folder: RunFolder) -> None:
    """The line that begins with "ready:" is what scripts wait for."""
    base, served = place.base, checked.served
    body = {"model": served.models[0].name, "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
    known = [entry.name for entry in served.models] + [route.model for route in served.routes]
    key, why = "", f"curl {base}/debug/route"
    if served.tenants or served.require_tenant:  # who may not see each other's requests
        key = " -H 'authorization: Bearer KEY'"
        why = f'curl {place.admin_url}/debug/route -H "authorization: Bearer $(cat {folder.admin_token})"'
    lines = (
        f"ready: {base}/v1 ({', '.join(known)}; {plural(num_workers)})",
        f"  try:  curl {base}/v1/chat/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'",
        f"  why:  {why}",
        *_scaling_lines(checked, folder),
        f"  logs: {folder.logs}",
        f"  stop: Ctrl-C, or kill {os.getpid()}",
    )
    for line in lines:
        say(console, line)


def _scaling_lines(checked: Checked, folder: RunFolder) -> list[str]:
    scaled = [
        f"{service.metadata.name} {scaling.min_replicas} to {plural(scaling.max_replicas)}"
        for service in checked.services
        if (scaling := service.spec.scaling) is not None
    ]
    return [f"  scales: {', '.join(scaled)}, as demand is; decisions: {folder.path / SCALING_FILE}"] if scaled else []


def _failure(error: PodFailedError, log_dir: Path | None) -> CommandError:
    lines = [f"{error.pod} cannot start ({error.reason}); it said:", *(f"    {line}" for line in error.tail)]
    if log_dir is not None:
        lines.append(f"the whole log: {error.log}")
    return CommandError("\n".join(lines), exit_code=EXIT_FAILED)
