"""Filters for models and tenants that nobody has."""

from quire_contract.router_config import ModelEntry, RouteEntry, RouterConfig, RouteTargetEntry, write_config
from quire_contract.router_settings import FilterEntry, RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry
from quire_router.filtering.unknown import unknown_names

ROUTE = RouteEntry(model="chat", targets=[RouteTargetEntry(model="m")])


def config_of(*filters, tenants=("ns/acme",)):
    return RouterConfig(
        models=[ModelEntry(name="m")],
        endpoints=[],
        routes=[ROUTE],
        tenants=[TenantEntry(id=tenant) for tenant in tenants],
        settings=RouterSettingsEntry(filters=list(filters)),
    )


def test_each_field_that_names_nobody_is_a_line_and_routes_count():
    good = FilterEntry(name="good", words=["x"], models=["m", "chat"], tenants=["ns/acme"])
    bad = FilterEntry(name="bad", words=["x"], models=["m", "mm"], tenants=["acme"])

    lines = unknown_names(config_of(good, bad))

    assert lines == [
        "filters[1].models: there is no 'mm'; here are: chat, m",
        "filters[1].tenants: there is no 'acme'; here are: ns/acme",
    ]
    assert unknown_names(RouterConfig(models=[], endpoints=[])) == []


def test_of_many_tenants_the_first_are_named():
    config = config_of(
        FilterEntry(name="f", words=["x"], tenants=["no"]), tenants=[f"ns/t{number:03}" for number in range(25)]
    )

    (line,) = unknown_names(config)

    assert line.endswith("ns/t018, ns/t019 and 5 more")


async def test_the_router_says_it_once_in_its_log_until_it_is_mended(start_router, until, logged):
    bad = FilterEntry(name="f", words=["x"], models=["mm"])
    router = await start_router(config_of(bad))
    begun = logged().count("filter_for_nobody")

    write_config(router.config_path, config_of(bad, tenants=["ns/acme", "ns/other"]))
    await until(lambda: len(router.app._access.tenants.tenants) == 2)
    again = logged().count("filter_for_nobody")
    write_config(router.config_path, config_of())
    await until(lambda: len(router.app._access.tenants.tenants) == 1)
    write_config(router.config_path, config_of(bad, tenants=["ns/acme", "ns/other"]))
    await until(lambda: logged().count("filter_for_nobody") == 2)

    assert (begun, again) == (1, 1)
    assert "there is no 'mm'; here are: chat, m" in logged()
