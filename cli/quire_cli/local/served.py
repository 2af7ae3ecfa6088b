"""What `quire up` tells its router beside the endpoints: names, routes, tenants and settings, as the operator and the chart would.

While it runs, files are followed: a tenant, key, route or setting that changes there, and a service's `routing`, `price`, `replicas` and
`scaling`, hold within two seconds. What is wrong in a file is told, and the last good content holds. This module must not know processes.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quire_cli.errors import CommandError
from quire_cli.local.router_settings import read_settings
from quire_cli.local.sizes import provider_warnings
from quire_cli.manifest_files import Document, LoadedFiles, load_resources
from quire_contract.router_config import RouteEntry, RouterConfig
from quire_contract.router_settings import RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry
from quire_operator.acceptance import decide_route
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.model_route import MODEL_ROUTE
from quire_operator.api.tenant import TENANT, Tenant
from quire_operator.api.validation import Problem, parse_resource
from quire_operator.manifests.router import router_config
from quire_operator.name_claims import ServiceKey
from quire_operator.tenants import tenant_entry
from quire_router.filtering.unknown import unknown_names

POLL_S = 0.25
_FOLLOWED = ("routing", "price", "replicas", "scaling")
"""Of a service's spec."""
_NAMESPACE = "default"
"""There are no namespaces here: everything is in one."""


@dataclass(frozen=True, kw_only=True)
class ServedFiles:
    """Where it is written."""

    manifests: tuple[Path, ...]
    settings: Path | None = None
    """Routers' settings, YAML or JSON; None: the defaults."""
    require_tenant: bool = False
    """Refuse requests without a tenant's key even while there is no tenant."""

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file."""
        return self.manifests if self.settings is None else (*self.manifests, self.settings)


def served_config(loaded: LoadedFiles, services: Sequence[InferenceService], files: ServedFiles) -> RouterConfig:
    """The router's configuration without endpoints. CommandError with every problem of routes, tenants and settings."""
    base = router_config(services)
    errors: list[str] = []
    owners = {model.name: (_NAMESPACE, model.service.partition("/")[2]) for model in base.models}
    routes = _routes([one for one in loaded.others if one.kind == MODEL_ROUTE.kind], owners, errors)
    tenants = _tenants([one for one in loaded.others if one.kind == TENANT.kind], errors)
    settings = None if files.settings is None else _settings(files.settings, errors)
    if errors:
        raise CommandError(*errors)
    return msgspec.structs.replace(
        base, routes=routes, tenants=tenants, settings=settings, require_tenant=files.require_tenant
    )


def _routes(documents: Sequence[Document], owners: Mapping[str, ServiceKey], errors: list[str]) -> list[RouteEntry]:
    routes: list[RouteEntry] = []
    older: dict[str, ServiceKey] = {}
    for document in documents:
        placed = {**document.data, "metadata": {**document.data["metadata"], "namespace": _NAMESPACE}}
        entry, problems, _ = decide_route(placed, owners, older)
        errors += map(document.describe, problems)
        if entry is not None:
            older[entry.model] = (_NAMESPACE, placed["metadata"]["name"])
            routes.append(entry)
    return routes


def _tenants(documents: Sequence[Document], errors: list[str]) -> list[TenantEntry]:
    """One name and one digest stand for one tenant: nobody here is older than somebody else."""
    tenants: dict[str, tuple[TenantEntry, Document]] = {}
    owner_of: dict[str, str] = {}
    for document in documents:
        tenant = parse_resource(document.data, TENANT)
        assert isinstance(tenant, Tenant)
        entry = tenant_entry(tenant, tenant.metadata.name, namespace=None)
        if entry.id in tenants:
            place = tenants[entry.id][1].place("metadata.name")
            message = f"{entry.id!r} is defined already at {place}; give one another name"
            errors.append(document.describe(Problem(path="metadata.name", message=message)))
        for i, key in enumerate(entry.keys):
            if (owner := owner_of.setdefault(key.sha256, entry.id)) != entry.id:
                message = f"is a key of Tenant {owner}, too; remove one"
                errors.append(document.describe(Problem(path=f"spec.keys[{i}].sha256", message=message)))
        tenants.setdefault(entry.id, (entry, document))
    return [entry for entry, _ in tenants.values()]


def _settings(path: Path, errors: list[str]) -> RouterSettingsEntry | None:
    try:
        return read_settings(path)
    except CommandError as error:
        errors += error.lines
        return None


def served_warnings(loaded: LoadedFiles, config: RouterConfig) -> list[str]:
    """What is allowed and most likely a mistake: names that nothing has. On a cluster they may come later; here nobody brings them."""
    names = sorted({model.name for model in config.models} | {route.model for route in config.routes})
    warnings: list[str] = []
    of_id = {tenant.id: tenant for tenant in config.tenants}
    for document in loaded.others:
        if document.kind != TENANT.kind:
            continue
        tenant = of_id[document.data["metadata"]["name"]]
        if not tenant.keys:
            message = (
                f"is empty, so nobody can call; make a key: quire tenant rotate {tenant.id} --file {document.file}"
            )
            warnings.append(document.describe(Problem(path="spec.keys", message=message)))
        for i, model in enumerate(tenant.models):
            if model not in names:
                message = f"nothing here serves {model!r}; served here: {', '.join(names)}"
                warnings.append(document.describe(Problem(path=f"spec.models[{i}]", message=message)))
    warnings += [f"settings: {line}" for line in unknown_names(config)]
    return [f"warning: {line}" for line in warnings]


def _not_followed(wanted: Sequence[InferenceService], served: Sequence[InferenceService]) -> list[str]:
    """What the files say of services and is not done while they are served; `served` holds already what is."""
    specs = {one.metadata.name: one.spec for one in wanted}
    running = {one.metadata.name: one.spec for one in served}
    anew = "after quire up is started anew"
    changed = "was changed: all but its routing, price, replicas and scaling holds"
    lines = [f"{name}: {changed} {anew}" for name, spec in running.items() if specs.get(name, spec) != spec]
    lines += [f"{name}: is new, and served {anew}" for name in specs if name not in running]
    gone = f"is in no file any more; it is served on, and gone {anew}"
    return [*lines, *(f"{name}: {gone}" for name in running if name not in specs)]


@dataclass(frozen=True)
class _Wanted:
    config: RouterConfig
    services: list[InferenceService]


class FileFollower:
    """Looks at the files while they are served."""

    def __init__(
        self,
        files: ServedFiles,
        services: Sequence[InferenceService],
        serve: Callable[[RouterConfig], bool],
        scale: Callable[[Sequence[InferenceService]], None],
        tell: Callable[[str], None],
    ) -> None:
        """`services` are those whose workers run; `serve` uses a configuration, `scale` what services say of the number of their workers,
        `tell` says a line to the user."""
        self._files = files
        self._services = list(services)
        self._serve = serve
        self._scale = scale
        self._tell = tell
        self._seen = _versions(files.all)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            versions = _versions(self._files.all)
            if versions != self._seen:
                self._seen = versions
                self._use(*await asyncio.to_thread(self._read))

    def _read(self) -> tuple[_Wanted | None, list[str]]:
        """What is to be served, if it can be, and lines about it. In a thread: parsing thousands of tenants takes a while."""
        try:
            loaded = load_resources(self._files.manifests)
            wanted = [one.service for one in loaded.services]
            services = [_as_written(service, wanted) for service in self._services]
            config = served_config(loaded, services, self._files)
        except CommandError as error:
            return None, [f"error: {line} (what was served before is served on)" for line in error.lines]
        told = [*_not_followed(wanted, services), *served_warnings(loaded, config), *provider_warnings(loaded.services)]
        return _Wanted(config, services), told

    def _use(self, wanted: _Wanted | None, lines: Sequence[str]) -> None:
        if wanted is not None:
            self._services = wanted.services
            if self._serve(wanted.config):
                self._tell("tenants, routes and settings are served as the files say now")
            self._scale(wanted.services)
        for line in lines:
            self._tell(line)


def _as_written(service: InferenceService, wanted: Sequence[InferenceService]) -> InferenceService:
    """A service whose workers run, with what the files say now about its requests and the number of its workers: no worker is made of
    that."""
    now = next((one.spec for one in wanted if one.metadata.name == service.metadata.name), None)
    if now is None:
        return service
    spec = service.spec.model_copy(update={field: getattr(now, field) for field in _FOLLOWED})
    return service.model_copy(update={"spec": spec})


def _versions(paths: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    return [_version(path) for path in paths]


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
