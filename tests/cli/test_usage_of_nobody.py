"""`quire tenant usage` of a name that no tenant has, against a real router's admin port."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from quire_cli.errors import CommandError
from quire_cli.tenant.usage import AdminApi, UsageQuery, fetch_usage
from quire_contract.router_config import ModelEntry, RouterConfig, write_config
from quire_contract.router_tenants import TenantEntry
from quire_router.__main__ import running
from quire_router.config import RouterSettings

TOKEN = "a token of the tests"


@contextlib.asynccontextmanager
async def admin_of(tmp_path: Path, *tenants: str) -> AsyncIterator[AdminApi]:
    path = tmp_path / "router.json"
    entries = [TenantEntry(id=tenant) for tenant in tenants]
    write_config(path, RouterConfig(models=[ModelEntry(name="m")], endpoints=[], tenants=entries))
    settings = RouterSettings(port=0, shutdown_timeout_s=0.2, config=path, admin_port=0, admin_token=TOKEN)
    async with running(settings, None) as (app, _):
        yield AdminApi(url=app.admin_url, token=TOKEN)


async def asked(admin: AdminApi, tenant: str, shown: str) -> list[str]:
    """The lines, or the error's."""
    try:
        return await asyncio.to_thread(fetch_usage, admin, UsageQuery(tenant=tenant), shown)
    except CommandError as error:
        return list(error.lines)


@pytest.mark.parametrize("shown", ["table", "csv", "json"])
async def test_who_never_was_is_not_told_as_somebody_who_used_nothing(shown: str, tmp_path: Path) -> None:
    async with admin_of(tmp_path, "acme", "beta") as admin:
        nobody = await asked(admin, "acmee", shown)
        idle = await asked(admin, "acme", shown)

    assert nobody == ["there is no tenant acmee; did you mean acme?"]
    assert idle == ["no usage in that time"] if shown == "table" else "no tenant" not in "".join(idle)


async def test_on_a_cluster_the_namespace_is_asked_for(tmp_path: Path) -> None:
    async with admin_of(tmp_path, "llm/acme", "llm/beta") as admin:
        without = await asked(admin, "acme", "table")
        stranger = await asked(admin, "llm/zzz", "table")

    assert without[0] == "there is no tenant acme; did you mean llm/acme?"
    assert without[1] == "a tenant of a cluster is named with its namespace: -n NAMESPACE"
    assert stranger[0] == "there is no tenant llm/zzz; there are: llm/acme, llm/beta"


async def test_a_release_without_tenants_says_so(tmp_path: Path) -> None:
    async with admin_of(tmp_path) as admin:
        told = await asked(admin, "acme", "table")

    assert told == ["there is no tenant acme"]
