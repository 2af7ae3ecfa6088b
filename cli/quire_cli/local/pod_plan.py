"""What to start for a Deployment: a replica as a command line, an environment and probes. Makes the pod's folders and nothing else.

Does what scheduler and kubelet do on a cluster: names pods, gives addresses and folders, expands $(VAR).
This module must not start anything.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host
from quire_cli.local import devices
from quire_cli.local.expansion import expand
from quire_cli.local.supplies import LOOPBACK, Share
from quire_contract import names
from quire_contract.router_config import EndpointEntry
from quire_operator.api.types import quantity_value
from quire_operator.manifests import parts, router, worker
from quire_operator.manifests.parts import Manifest

WORKER_PORTS = 4
"""Requests, events, replay, health."""
_PASSED_ON = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LANGUAGE",
        "TZ",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "CUDA_VISIBLE_DEVICES",
        "CC",
        "CXX",
    }
)
_PASSED_ON_PREFIXES = ("LC_", "PYTHON", "NVIDIA_", "SSL_CERT_")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An HTTP question about a container, as the kubelet asks it."""

    url: str
    period_s: float
    timeout_s: float
    max_failures: int


@dataclass(frozen=True, kw_only=True)
class PodPlan:
    """One process to keep running."""

    name: str
    """The pod's name, unique in the run."""
    role: str
    """worker or router."""
    service: str
    """The InferenceService; empty for the router."""
    argv: tuple[str, ...]
    """Absolute program and its arguments."""
    environ: Mapping[str, str]
    """The whole environment."""
    readiness: Probe
    liveness: Probe
    start_timeout_s: float
    """Time to the first readiness after which the process is restarted."""
    grace_s: float
    """Time between SIGTERM and SIGKILL."""
    endpoint: EndpointEntry | None
    """What the router learns about it while it is ready; None for routers."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the machine gives to pods in place of a cluster."""

    host: Host
    folders: Mapping[str, Path]
    """Folder per volume name, for volumes that all pods share; others are below the pod's own."""
    compute_threads: int
    """Compute threads of one worker."""


@dataclass(frozen=True, kw_only=True)
class WorkerKind:
    """What every worker of a service is made of."""

    service: str
    """The InferenceService's name."""
    deployment: Manifest
    model: Path
    """The model's folder."""

    @property
    def id(self) -> str:
        """The service as routers know it, "namespace/name"."""
        return f"{self.deployment['metadata'].get('namespace') or 'default'}/{self.service}"

    @property
    def num_devices(self) -> int:
        """Nvidia devices of each."""
        return _num_devices(self.deployment["spec"]["template"]["spec"]["containers"][0])


def plan_worker(kind: WorkerKind, index: int, share: Share, surroundings: Surroundings) -> PodPlan:
    """Replica `index`, on loopback; `share` has WORKER_PORTS ports."""
    deployment, ports = kind.deployment, share.ports
    addresses = [f"tcp://{LOOPBACK}:{port}" for port in ports[1:3]]
    overrides = {
        parts.ENV_MODEL_DIR: str(kind.model),
        names.ENV_HOST: LOOPBACK,
        names.ENV_PORT: str(ports[0]),
        names.ENV_HEALTH_PORT: str(ports[3]),
        names.ENV_EVENTS_ENDPOINT: addresses[0],
        names.ENV_REPLAY_ENDPOINT: addresses[1],
    }
    name = f"{deployment['metadata']['name']}-{index}"
    url = f"http://{LOOPBACK}:{ports[0]}"
    urls = {names.PORT_NAME_HTTP: url, names.PORT_NAME_HEALTH: f"http://{LOOPBACK}:{ports[3]}"}
    endpoint = EndpointEntry(
        id=name,
        url=url,
        models=json.loads(deployment["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_SERVED_NAMES]),
        events=addresses[0],
        replay=addresses[1],
        service=kind.id,
        revision=deployment["metadata"]["labels"].get(names.LABEL_REVISION, ""),
    )
    plan = _plan(deployment, name, overrides, urls, share, surroundings)
    return replace(plan, service=kind.service, endpoint=endpoint)


def plan_router(deployment: Manifest, host: str, port: int, share: Share, surroundings: Surroundings) -> PodPlan:
    """The router, on the address that the user chose."""
    config = surroundings.folders[router.VOLUME_CONFIG] / router.CONFIG_FILE
    overrides = {
        names.ENV_HOST: host,
        names.ENV_PORT: str(port),
        router.ENV_SOURCE: f"--config={config}",
        router.ENV_SHUTDOWN_DELAY: "0",  # nobody else sends requests here, so nobody has to learn that it ends
    }
    asked = LOOPBACK if host in {"0.0.0.0", "::", ""} else host  # noqa: S104  (where to ask, not where to listen)
    url = f"http://{f'[{asked}]' if ':' in asked else asked}:{port}"
    name = deployment["metadata"]["name"]
    plan = _plan(deployment, name, overrides, {names.PORT_NAME_HTTP: url}, share, surroundings)
    key = surroundings.host.environ.get(names.ENV_API_KEY)
    return plan if key is None else _with_variable(plan, names.ENV_API_KEY, key)


def with_admin(plan: PodPlan, url: str, token_file: Path) -> PodPlan:
    """The router with its admin port at `url`, "http://host:port". Its token is in a file: arguments are seen by others."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    flags = ("--admin-host", host, "--admin-port", port, "--admin-token-file", str(token_file))
    return replace(plan, argv=(*plan.argv, *flags))


def _with_variable(plan: PodPlan, name: str, value: str) -> PodPlan:
    return replace(plan, environ={**plan.environ, name: value})


def _plan(
    deployment: Manifest,
    name: str,
    overrides: Mapping[str, str],
    urls: Mapping[str, str],
    share: Share,
    surroundings: Surroundings,
) -> PodPlan:
    """With neither service nor endpoint."""
    spec = deployment["spec"]["template"]["spec"]
    container = spec["containers"][0]
    environ = _environ(
        container, _mounts(container, spec["volumes"], share, surroundings), name, overrides, surroundings
    )
    if share.devices:
        environ[devices.VARIABLE] = ",".join(share.devices)
    command = [expand(part, environ) for part in container["command"]]
    args = [expand(part, environ) for part in container.get("args", [])]
    return PodPlan(
        name=name,
        role=deployment["metadata"]["labels"][names.LABEL_ROLE],
        service="",
        argv=(str(_program(command[0], surroundings.host)), *command[1:], *args),
        environ={**_host_environ(surroundings.host), **environ},
        readiness=_probe(container["readinessProbe"], urls),
        liveness=_probe(container["livenessProbe"], urls),
        start_timeout_s=_start_timeout_s(container),
        grace_s=spec["terminationGracePeriodSeconds"],
        endpoint=None,
    )


def _start_timeout_s(container: Manifest) -> float:
    """A worker says itself how long its load may take; else the startup probe does."""
    args, probe = container.get("args", []), container["startupProbe"]
    if worker.LOAD_TIMEOUT_FLAG in args:
        return float(args[args.index(worker.LOAD_TIMEOUT_FLAG) + 1])
    return float(probe["periodSeconds"] * probe["failureThreshold"])


def check_program(deployment: Manifest, host: Host) -> None:
    """CommandError if what its pods run is not installed here."""
    _program(deployment["spec"]["template"]["spec"]["containers"][0]["command"][0], host)


def _program(command: str, host: Host) -> Path:
    """An image's command is the console script of the same name in this installation."""
    script = host.script(command)
    if not script.is_file():
        extra = command.removeprefix("quire-")
        raise CommandError(f"{script}: missing; install it with `pip install quire[{extra}]`", exit_code=EXIT_FAILED)
    return script


def _probe(probe: Manifest, urls: Mapping[str, str]) -> Probe:
    """`urls` of the container's ports, by their names."""
    asked = probe["httpGet"]
    return Probe(
        url=urls[asked["port"]] + asked["path"],
        period_s=probe["periodSeconds"],
        timeout_s=probe["timeoutSeconds"],
        max_failures=probe["failureThreshold"],
    )


def _host_environ(host: Host) -> dict[str, str]:
    """What a program needs of the machine; keys and tokens of the user's shell stay out."""
    return {
        name: value
        for name, value in host.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }


def _environ(
    container: Manifest,
    mounts: list[tuple[str, Path]],
    pod: str,
    overrides: Mapping[str, str],
    surroundings: Surroundings,
) -> dict[str, str]:
    """The container's variables in order, so that a later one may refer to an earlier one."""
    fields = {"metadata.name": pod, "status.podIP": LOOPBACK}
    environ: dict[str, str] = {}
    for variable in container["env"]:
        name = variable["name"]
        if name in overrides:
            environ[name] = overrides[name]
        elif "value" in variable:
            environ[name] = _inside(expand(variable["value"], environ), mounts)
        else:
            environ[name] = _from_source(variable["valueFrom"], fields, container, surroundings)
    return environ


def _from_source(source: Manifest, fields: Mapping[str, str], container: Manifest, surroundings: Surroundings) -> str:
    if "fieldRef" in source:
        return fields[source["fieldRef"]["fieldPath"]]
    assert source["resourceFieldRef"]["resource"] == "limits.cpu", f"not known locally: {source}"
    limit: Any = container["resources"].get("limits", {}).get("cpu")
    threads = surroundings.compute_threads
    return str(threads if limit is None else min(threads, math.ceil(quantity_value(str(limit)))))


def _num_devices(container: Manifest) -> int:
    return int(container["resources"].get("limits", {}).get(devices.RESOURCE, 0))


def _mounts(
    container: Manifest, volumes: list[Manifest], share: Share, surroundings: Surroundings
) -> list[tuple[str, Path]]:
    """(path inside the container, folder on this machine); an emptyDir that nobody shares is made in the pod's own folder."""
    empty = {volume["name"] for volume in volumes if "emptyDir" in volume} - surroundings.folders.keys()
    own = share.folder
    mounts = []
    for mount in container["volumeMounts"]:
        name = mount["name"]
        if name in empty:
            (own / name).mkdir(parents=True, exist_ok=True)
        if name in empty or name in surroundings.folders:
            mounts.append((mount["mountPath"], own / name if name in empty else surroundings.folders[name]))
    return sorted(mounts, key=lambda item: -len(item[0]))


def _inside(value: str, mounts: list[tuple[str, Path]]) -> str:
    """A path below a mount, as the folder that stands for the mount here."""
    for path, folder in mounts:
        if value == path or value.startswith(f"{path}/"):
            return f"{folder}{value[len(path) :]}"
    return value
