"""Who may call a router that knows tenants, and what keeps their cached prefixes apart. Real upstreams, real sockets."""

import os
import time

import pytest

from quire_contract.block_hash import ExtraKeys, hash_blocks, wire_hashes
from quire_contract.openai.decode import decode_routing_fields
from quire_contract.router_config import (
    EndpointEntry,
    ModelEntry,
    RouteEntry,
    RouterConfig,
    RouteTargetEntry,
    write_config,
)
from quire_contract.router_tenants import TenantEntry
from quire_contract.trust import Trust, TrustError
from quire_router.call import Tenant
from quire_router.tenants import TenantBook, salt_key
from tests.router.tenant_help import bearer, key_entry, tenant


def config_with(*tenants, upstream=None, models=("m",), **fields):
    endpoints = [] if upstream is None else [EndpointEntry(id="a", url=upstream.url, models=list(models))]
    return RouterConfig(
        models=[ModelEntry(name=m, service="ns/" + m) for m in models],
        endpoints=endpoints,
        tenants=list(tenants),
        **fields,
    )


async def status_of(router, headers, path="/v1/models"):
    async with router.get(path, headers=headers) as answer:
        body = await answer.json()
    return answer.status, body.get("error", {}).get("code")


async def listed(router, key):
    async with router.get("/v1/models", headers=bearer(key)) as answer:
        return [card["id"] for card in (await answer.json())["data"]]


async def test_each_live_key_of_a_tenant_is_admitted_in_either_header_and_nothing_else_is(start_router):
    now = time.time()
    expired, later = key_entry("old", "old", now - 1), key_entry("soon", "soon", now + 1000)
    router = await start_router(
        config_with(tenant("t", "one", "two", expired, later), tenant("s", "x", suspended=True))
    )

    found = [
        await status_of(router, bearer("one")),
        await status_of(router, {"x-api-key": "two"}),
        await status_of(router, bearer("soon")),
        await status_of(router, bearer("old")),
        await status_of(router, bearer("x")),
        await status_of(router, bearer("other")),
        await status_of(router, bearer("ключ")),
        await status_of(router, {}),
        await status_of(router, bearer(key_entry("one").sha256)),
    ]

    assert found == [
        (200, None),
        (200, None),
        (200, None),
        (401, "expired_api_key"),
        (403, "tenant_suspended"),
        (401, "invalid_api_key"),
        (401, "invalid_api_key"),
        (401, "invalid_api_key"),
        (401, "invalid_api_key"),
    ]


@pytest.mark.parametrize(("require", "statuses"), [(False, (200, 200)), (True, (401, 200))], ids=["beside", "required"])
async def test_the_routers_own_keys_work_beside_tenants_unless_a_tenant_is_required(require, statuses, start_router):
    router = await start_router(config_with(tenant("t", "one"), require_tenant=require), api_keys=("own",))

    found = [await status_of(router, bearer("own")), await status_of(router, bearer("one"))]

    assert tuple(status for status, _ in found) == statuses


async def test_a_router_without_tenants_and_keys_is_open_unless_a_tenant_is_required(start_router):
    router = await start_router(config_with())

    before = await status_of(router, {})
    write_config(router.config_path, config_with(require_tenant=True))
    while (after := await status_of(router, {}))[0] == 200:
        pass

    assert before == (200, None)
    assert after == (401, "invalid_api_key")


async def test_a_revoked_key_is_refused_as_soon_as_the_configuration_is_swapped(start_router, until):
    router = await start_router(config_with(tenant("t", "one", "two")))
    before = await status_of(router, bearer("one"))

    write_config(router.config_path, config_with(tenant("t", key_entry("two"))))
    await until(lambda: len(router.app._access.tenants.tenants["t"].keys) == 1)

    assert before == (200, None)
    assert await status_of(router, bearer("one")) == (401, "invalid_api_key")
    assert await status_of(router, bearer("two")) == (200, None)


async def test_what_a_tenant_may_not_use_does_not_exist_for_it(start_upstream, start_router):
    worker = await start_upstream("a")
    models = [ModelEntry(name="m", service="one/m"), ModelEntry(name="secret", service="two/s")]
    routes = [
        RouteEntry(model="near", targets=[RouteTargetEntry(model="m")]),
        RouteEntry(model="far", targets=[RouteTargetEntry(model="m")], fallbacks=["secret"]),
    ]
    tenants = [tenant("n", "n", namespace="one"), tenant("l", "l", models=["near"]), tenant("all", "all")]
    router = await start_router(
        RouterConfig(
            models=models,
            endpoints=[EndpointEntry(id="a", url=worker.url, models=["m", "secret"])],
            routes=routes,
            tenants=tenants,
        )
    )
    await router.until_ready(1)

    lists = [await listed(router, key) for key in ("n", "l", "all")]
    answers = {}
    for model in ("secret", "nobody"):
        async with router.post({"model": model, "prompt": "x"}, headers=bearer("n")) as answer:
            answers[model] = answer.status, (await answer.json())["error"]["message"].replace(model, "M")
    async with router.post({"model": "near", "prompt": "x"}, headers=bearer("l")) as answer:
        through_route = answer.status
    async with router.get("/v1/models/secret", headers=bearer("n")) as answer:
        alone = answer.status

    assert lists == [["m", "near"], ["near"], ["m", "secret", "near", "far"]]
    assert answers["secret"] == answers["nobody"] == (404, "The model `M` does not exist. Served: m, near.")
    assert (through_route, alone) == (200, 404)
    assert worker.num_calls == 1


async def test_what_the_router_does_for_others_is_shown_only_to_holders_of_its_own_keys(start_router):
    router = await start_router(config_with(tenant("t", "one"), require_tenant=True), api_keys=("own",))

    found = [await status_of(router, headers, "/debug/route") for headers in (bearer("one"), bearer("own"), {})]

    assert [status for status, _ in found] == [403, 200, 401]


async def test_a_tenants_key_never_reaches_a_worker(start_upstream, start_router):
    worker = await start_upstream("a")
    router = await start_router(config_with(tenant("t", "one"), upstream=worker))
    await router.until_ready(1)

    async with router.post({"model": "m", "prompt": "x"}, headers=bearer("one")) as answer:
        status = answer.status

    assert status == 200
    assert "Authorization" not in worker.headers[0]


async def test_workers_get_a_salt_for_each_tenant_that_no_client_can_choose(start_upstream, start_router):
    worker, trust = await start_upstream("a"), Trust.generate()
    tenants = [tenant("t", "t1", "t2"), tenant("u", "u"), tenant("shares", "s", shares_cache=True)]
    router = await start_router(config_with(*tenants, upstream=worker), trust)
    await router.until_ready(1)
    body = {"model": "m", "prompt": "x"}

    for key, salt in (("t1", None), ("t2", None), ("t1", "own"), ("u", None), ("s", "own")):
        headers = {**bearer(key), "x-quire-cache-salt": "forged"}
        async with router.post(body if salt is None else body | {"cache_salt": salt}, headers=headers) as answer:
            assert answer.status == 200

    first, second, salted, other, shared = (headers.get("x-quire-cache-salt") for headers in worker.headers)
    assert first == second
    assert len({first, salted, other}) == 3
    assert shared is None


async def test_prompts_are_hashed_with_the_salt_that_workers_get(
    start_upstream, start_router, bundle, model_dir, until
):
    worker, trust = await start_upstream("a", bundle=bundle), Trust.generate()
    router = await start_router(config_with(tenant("t", "t"), tenant("u", "u"), upstream=worker), trust)
    await until(lambda: router.app._pool.get("a").digest is not None)
    ids = list(range(10, 42))

    for key in ("t", "u"):
        async with router.post({"model": "m", "prompt": ids}, headers=bearer(key)) as answer:
            assert answer.status == 200
    sent = router.app._picker._sent
    salts = [headers["x-quire-cache-salt"] for headers in worker.headers]
    expected = [wire_hashes(hash_blocks(ids, 16, ExtraKeys(cache_salt=salt))) for salt in salts]

    assert [sent.match_prefix("a", hashes, 0.0) for hashes in expected] == [2, 2]
    assert sent.match_prefix("a", wire_hashes(hash_blocks(ids, 16)), 0.0) == 0
    assert decode_routing_fields(worker.bodies[0]).cache_salt is None


def test_the_salts_key_is_the_releases_own_and_survives_a_new_token(tmp_path):
    trust = Trust.generate()
    kept = Trust(trust.token, trust.curve_public, trust.curve_secret, "kept for good")
    renewed = Trust.generate()
    renewed = Trust(renewed.token, renewed.curve_public, renewed.curve_secret, "kept for good")

    kept.write(tmp_path)

    assert salt_key(Trust.read(tmp_path)) == salt_key(kept) == salt_key(renewed)
    assert salt_key(trust) not in (salt_key(kept), None)
    assert salt_key(None) is None
    assert "kept for good" not in repr(kept)
    (tmp_path / "cache-salt").chmod(0o000)
    if os.geteuid() != 0:
        with pytest.raises(TrustError):
            Trust.read(tmp_path)


def test_salts_of_different_tenants_and_requests_cannot_be_made_equal():
    book = TenantBook(b"key")
    pairs = [("a", "b"), ("a", "b\0"), ("a\0b", None), ("ab", ""), ("a", None)]

    salts = {book.salt(Tenant(entry=TenantEntry(id=t), key_id="k"), requested) for t, requested in pairs}

    assert len(salts) == len(pairs)


def test_who_came_before_a_swap_does_not_say_what_its_tenant_may_use_after_it():
    book = TenantBook(None)
    book.swap(config_with(tenant("t", "one", models=["m", "n"]), models=("m", "n")))
    (early,) = (Tenant(entry=entry, key_id="one") for entry in book.tenants.values())

    book.swap(config_with(tenant("t", "one", models=["m"]), models=("m", "n")))
    (late,) = (Tenant(entry=entry, key_id="one") for entry in book.tenants.values())

    assert [book.may_use(who, model) for who in (early, late) for model in ("m", "n")] == [True, False] * 2
