"""The admin port: who is answered, usage in all its forms, tenants as they stand."""

import asyncio
import csv
import dataclasses
import datetime
import io
import json

import aiohttp
import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouteEntry, RouterConfig, RouteTargetEntry
from quire_contract.router_tenants import PriceEntry, TenantEntry, TenantLimitsEntry
from quire_router.admin import AdminApi, admin_listening
from quire_router.admin_usage import RECORD_COLUMNS, csv_lines, parse
from quire_router.config import RouterSettings, SettingsError, with_environment
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.tenancy import Tenancy
from quire_router.usage.memory import MemoryUsage
from tests.redis_server import running_redis
from tests.router.tenant_help import bearer, key_entry, until_true
from tests.router.test_malformed_http import REFUSED, STATUS, talk

TOKEN = "a token for keepers"
PRICES = {"m": PriceEntry(input="0.15", cached_input="0.075", output="0.6"), "big": PriceEntry(input="10", output="30")}
USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 400}}
COST_OF_M = "0.000126"
"""600 x 0.15 + 400 x 0.075 + 10 x 0.6, a million of them."""


@pytest.fixture
def redis_server(tmp_path):
    with running_redis(tmp_path) as server:
        yield server


async def answer(request, upstream):
    if json.loads(upstream.bodies[-1])["prompt"] == "fail":
        return web.json_response({"error": {}}, status=500)
    return web.json_response({"usage": USAGE})


@pytest.fixture(params=["memory", "redis"])
def served(request, start_upstream, start_router):
    async def start(**settings):
        if request.param == "redis":
            settings["redis_url"] = request.getfixturevalue("redis_server").url
        worker = await start_upstream("a", answer)
        config = RouterConfig(
            models=[ModelEntry(name=name, price=price) for name, price in PRICES.items()],
            endpoints=[EndpointEntry(id="a", url=worker.url, models=list(PRICES))],
            routes=[RouteEntry(model="route", targets=[RouteTargetEntry(model="big")])],
            tenants=[
                TenantEntry(id="ns/a", keys=[key_entry("a", "first"), key_entry("a2", "second", 4e9)]),
                TenantEntry(id="ns/b", keys=[key_entry("b")], billing="prepaid", credit="5.50"),
                TenantEntry(id="=1+2", keys=[key_entry("c")], limits=TenantLimitsEntry(requests_per_minute=7)),
            ],
        )
        router = await start_router(config, admin_port=0, admin_token=TOKEN, **settings)
        await router.until_ready(1)
        return router

    return start


async def get(router, path, token=TOKEN):
    async with router.session.get(router.app.admin_url + path, headers=bearer(token)) as reply:
        text = await reply.text()
    return reply.status, text if "csv" in reply.headers["Content-Type"] else json.loads(text)


async def call(router, key, model="m", prompt="x", path="/v1/completions"):
    async with router.post({"model": model, "prompt": prompt}, path, headers=bearer(key)) as reply:
        return reply.status


async def written(router, number):
    async def all_are():
        status, page = await get(router, "/admin/usage?limit=1000")
        return status == 200 and len(page["data"]) == number

    await until_true(all_are)


async def test_only_holders_of_the_admin_token_are_answered(served):
    router = await served(api_keys=("own",))

    found = [(await get(router, "/admin/tenants", token))[0] for token in ("", "own", "a", TOKEN)]
    async with router.get("/admin/tenants", headers=bearer(TOKEN)) as reply:
        at_the_main_port = reply.status
    unknown, (_, error) = await get(router, "/nothing"), await get(router, "/admin/usage", "wrong")

    assert found == [401, 401, 401, 200]
    assert at_the_main_port == 404
    assert (unknown[0], error["error"]["code"]) == (404, "invalid_api_key")


async def test_usage_is_summed_by_what_is_asked_for_with_exact_costs(served):
    router = await served()
    for key, model, prompt in (
        ("a", "m", "x"),
        ("a2", "m", "x"),
        ("a", "route", "x"),
        ("b", "m", "x"),
        ("b", "m", "fail"),
    ):
        await call(router, key, model, prompt)
    await written(router, 5)

    _, by_tenant = await get(router, "/admin/usage?group_by=tenant")
    _, by_model = await get(router, "/admin/usage?group_by=model,tenant&tenant=ns/a")
    _, of_all = await get(router, "/admin/usage?group_by=")
    _, of_past = await get(router, "/admin/usage?group_by=day&from=2020-01-01&to=2020-12-31")

    rows = [(row["tenant"], row["requests"], row["prompt_tokens"], row["cost"]) for row in by_tenant["data"]]
    assert rows == [("ns/a", 3, 3000, "0.010552"), ("ns/b", 2, 1000, COST_OF_M)]
    assert [(row["model"], row["cost"]) for row in by_model["data"]] == [("m", "0.000252"), ("route", "0.0103")]
    assert (of_all["currency"], of_all["data"][0]["requests"]) == ("USD", 5)
    assert of_past["data"] == []


async def test_each_request_is_one_record_without_a_word_of_its_prompt(served):
    router = await served()
    await call(router, "a2", "route", "a very private prompt")
    await call(router, "b", "m", "fail")
    await written(router, 2)

    _, page = await get(router, "/admin/usage")

    failed, good = page["data"]
    assert (good["tenant"], good["key_id"], good["model"], good["served_model"]) == ("ns/a", "second", "route", "big")
    assert (good["status"], good["prompt_tokens"], good["cached_tokens"], good["output_tokens"]) == (200, 1000, 400, 10)
    assert (failed["status"], failed["prompt_tokens"], failed["cost"]) == (500, 0, "0")
    assert "private" not in json.dumps(page)


async def test_records_come_in_pages_that_hold_each_record_once(served):
    router = await served()
    for _ in range(7):
        await call(router, "a")
    await written(router, 7)

    seen, query = [], "/admin/usage?limit=3&tenant=ns/a"
    cursor = ""
    while cursor is not None:
        _, page = await get(router, query + (f"&cursor={cursor}" if cursor else ""))
        seen.append([record["id"] for record in page["data"]])
        cursor = page["cursor"]

    assert [len(ids) for ids in seen] == [3, 3, 1]
    assert len({i for ids in seen for i in ids}) == 7


async def test_csv_holds_the_same_and_no_formula(served):
    router = await served()
    await call(router, "c")
    await call(router, "a")
    await written(router, 2)

    status, records = await get(router, "/admin/usage?format=csv")
    _, sums = await get(router, "/admin/usage?format=csv&group_by=tenant")

    rows = list(csv.DictReader(io.StringIO(records)))
    assert status == 200
    assert [row["tenant"] for row in rows] == ["ns/a", "'=1+2"]
    assert [row["cost"] for row in rows] == [COST_OF_M, COST_OF_M]
    assert list(csv.reader(io.StringIO(sums)))[1] == ["'=1+2", "1", "1000", "400", "10", COST_OF_M]


async def test_tenants_are_shown_as_they_stand_and_never_their_digests(served):
    router = await served()
    for key in ("b", "b", "c"):
        await call(router, key)

    status, page = await get(router, "/admin/tenants")
    _, second = await get(router, "/admin/tenants?limit=1&cursor=%3D1%2B2")

    shown = {tenant["id"]: tenant for tenant in page["data"]}
    assert status == 200
    assert shown["ns/a"]["keys"] == [{"id": "first", "expires_ts": None}, {"id": "second", "expires_ts": 4e9}]
    assert (shown["ns/b"]["spent"], shown["ns/b"]["balance"]) == ("0.000252", "5.499748")
    assert shown["=1+2"]["limits"] == {"requests": {"limit": 7, "used": 1, "remaining": 6, "reserved": 0}}
    assert key_entry("a").sha256 not in json.dumps(page)
    assert ([tenant["id"] for tenant in second["data"]], second["has_more"], second["cursor"]) == (
        ["ns/a"],
        True,
        "ns/a",
    )


async def test_choices_and_metrics_by_tenant_are_shown_at_the_admin_port_only(served):
    router = await served()
    await call(router, "a")

    status, debug = await get(router, "/debug/route")
    async with router.session.get(router.app.admin_url + "/metrics", headers=bearer(TOKEN)) as reply:
        inside = await reply.text()
    async with router.get("/metrics") as reply:
        outside = await reply.text()

    assert (status, len(debug["decisions"])) == (200, 1)
    assert 'quire_router_tenant_tokens_total{kind="prompt",tenant="ns/a"} 1000.0' in inside
    assert 'quire_router_tenant_requests_total{code="2xx",tenant="ns/a"} 1.0' in inside
    assert "ns/a" not in outside


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-02-01", "to": "2026-01-01"}, "to"),
        ({"from": "2020-01-01", "to": "2026-01-01"}, "from"),
        ({"group_by": "tenant,key"}, "group_by"),
        ({"format": "xml"}, "format"),
        ({"limit": "0"}, "limit"),
        ({"limit": "99999999999"}, "limit"),
        ({"tenant": "x" * 501}, "tenant"),
        ({"tennant": "x"}, "tennant"),
    ],
    ids=str,
)
def test_a_wrong_question_is_answered_with_the_parameters_name(query, param):
    with pytest.raises(Exception, match=param) as raised:
        parse(query, datetime.date(2026, 11, 21))

    assert (raised.value.status, raised.value.param) == (400, param)


async def test_a_cursor_of_nobody_is_refused(served):
    router = await served()

    found = [(await get(router, f"/admin/usage?cursor={cursor}"))[0] for cursor in ("x", "-", "1-x", "%20")]

    assert found == [400] * 4


def test_cells_that_begin_like_formulas_begin_with_an_apostrophe():
    rows = [{"a": cell} for cell in ("=1", "+1", "-1", "@x", "\tx", "\uff1d1", 'say "x", y', "plain", -1)]

    lines = csv_lines(("a",), rows, header=True).decode().split("\r\n")

    assert lines == ["a", "'=1", "'+1", "'-1", "'@x", "'\tx", "'\uff1d1", '"say ""x"", y"', "plain", "-1", ""]


def test_cells_with_quotes_commas_and_line_ends_come_back_as_they_were():
    cells = ['a,b"c', "two\r\nlines", "\n=1+1", "\ud800", "", "é✓"]

    lines = csv_lines(("a", "b"), [{"a": cell, "b": 1} for cell in cells], header=False).decode()

    read = [row[0] for row in csv.reader(io.StringIO(lines, newline=""))]
    assert read == ['a,b"c', "two\r\nlines", "'\n=1+1", "?", "", "é✓"]


@pytest.mark.parametrize(
    "path", ["/admin/usage", "/admin/usage?format=csv", "/admin/usage?format=csv&group_by=day", "/admin/tenants"]
)
async def test_methods_are_looked_at_only_for_who_has_the_token(path, served):
    router = await served()
    await call(router, "a")
    await written(router, 1)

    async def ask(method, token, **headers):
        url = router.app.admin_url + path
        async with router.session.request(method, url, headers={**bearer(token), **headers}) as reply:
            return reply.status, await reply.read()

    wrong = [await ask(method, "wrong") for method in ("GET", "HEAD", "OPTIONS", "POST", "TRACE")]
    right = [await ask(method, TOKEN) for method in ("OPTIONS", "POST", "DELETE")]
    head, after = await ask("HEAD", TOKEN), await ask("GET", TOKEN)

    assert [status for status, _ in wrong] == [401] * 5
    assert [status for status, _ in right] == [405] * 3
    assert (head, after[0]) == ((200, b""), 200)
    assert after[1]


WRONG = [
    "Basic " + TOKEN,
    "Bearer",
    f"Bearer {TOKEN}x",
    "Bearer " + TOKEN[:-1],
    "Bearer é",
    "bearer " + "x" * 7000,
    TOKEN,
]


@pytest.mark.parametrize("presented", WRONG, ids=range(len(WRONG)))
async def test_what_is_not_the_token_opens_nothing(presented, start_router):
    config = RouterConfig(models=[], endpoints=[])
    router = await start_router(config, admin_port=0, admin_token=TOKEN)

    for place in ("Authorization", "X-Api-Key", "X-Quire-Token"):
        async with router.session.get(
            router.app.admin_url + "/admin/tenants?token=" + TOKEN, headers={place: presented}
        ) as reply:
            assert reply.status == 401


async def test_what_is_no_sound_http_is_refused_at_the_admin_port_too(start_router, logged):
    router = await start_router(RouterConfig(models=[], endpoints=[]), admin_port=0, admin_token=TOKEN)
    key = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
    requests = {name: data.replace(b"X-A: b\r\n", key + b"X-A: b\r\n") for name, data in REFUSED.items()}

    told = await asyncio.gather(*(talk(router.app.admin_url, data) for data in requests.values()))

    found = dict(zip(requests, told, strict=True))
    assert {name: text[:100] for name, text in found.items() if not STATUS.findall(text)} == {}
    assert {name: text[:100] for name, text in found.items() if {*STATUS.findall(text)} & {b"200"}} == {}
    assert "Traceback" not in logged()


@pytest.mark.parametrize("group_by", ["", "&group_by=tenant"], ids=["records", "sums"])
async def test_a_large_export_is_whole_whatever_is_written_meanwhile(group_by):
    number = 25_000
    usage = MemoryUsage(lambda: 10 * number)

    def add(tenant):
        usage.add((tenant, "m", 1.79e9, 0.0, 0, 0, 0, 0, "r", 0, "k1", "x", "m", "/v1", 200, ""))

    for i in range(number):
        add(f"t{i}")
    metrics, live = RouterMetrics(), LiveConfig()
    parts = dict.fromkeys(field.name for field in dataclasses.fields(Tenancy)) | {"usage": usage}
    api = AdminApi(
        token=TOKEN, tenancy=Tenancy(**parts), live=live, metrics=metrics, debug_route=None, wall_clock=lambda: 1.79e9
    )

    async with (
        admin_listening(api, "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/admin/usage?format=csv{group_by}", headers=bearer(TOKEN)) as reply,
    ):
        await reply.content.readline()
        add("late")
        lines = (await reply.read()).decode().splitlines()

    column = 0 if group_by else RECORD_COLUMNS.index("tenant")
    assert reply.status == 200
    assert {line.split(",")[column] for line in lines} - {"late"} == {f"t{i}" for i in range(number)}
    assert len(lines) in (number, number + 1)


def test_an_admin_port_without_a_token_does_not_start(tmp_path):
    settings = RouterSettings(admin_port=0)
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")

    for environment in ({}, {"QUIRE_ADMIN_TOKEN": "short"}):
        with pytest.raises(SettingsError, match="--admin-port"):
            with_environment(settings, environment)
    for url in ("http://redis", "redis://host:port", "redis"):
        with pytest.raises(SettingsError, match="QUIRE_REDIS_URL"):
            with_environment(RouterSettings(), {"QUIRE_REDIS_URL": url})
    from_file = with_environment(RouterSettings(admin_port=0, admin_token_file=file), {})
    by_environment = with_environment(settings, {"QUIRE_ADMIN_TOKEN": TOKEN, "QUIRE_REDIS_URL": "redis://:pw@x:1/0"})

    assert from_file.admin_token == by_environment.admin_token == TOKEN
    assert TOKEN not in repr(from_file)
    assert "pw" not in repr(by_environment)


async def test_usage_cannot_be_read_while_redis_is_away_and_the_tenants_can(start_router, redis_server):
    config = RouterConfig(models=[], endpoints=[], tenants=[TenantEntry(id="t", keys=[key_entry("k")])])
    router = await start_router(config, admin_port=0, admin_token=TOKEN, redis_url=redis_server.url)
    redis_server.stop()
    await asyncio.sleep(0)

    usage, tenants = await get(router, "/admin/usage"), await get(router, "/admin/tenants")

    assert (usage[0], usage[1]["error"]["code"], tenants[0]) == (503, "not_ready", 200)
