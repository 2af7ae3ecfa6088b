"""A router process that is killed with requests in flight, and one that takes its place: limits in a real Redis, bills, service."""

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web
from cluster.processes import free_ports

from quire_contract import names
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_tenants import PriceEntry, TenantEntry, TenantLimitsEntry
from tests.redis_server import running_redis
from tests.router.processes import RouterProcess
from tests.router.tenant_help import bearer, key_entry, until_true

NUM_SLOTS = 3
TOKEN = "t" * 16
BODY = {"model": "m", "prompt": "x" * 40, "max_tokens": 20}
RESERVED, USED = 30, 15
DEAD_AFTER_S = 120.0
"""Redis believes a router dead after 15 s."""


@pytest.fixture
def start_process(tmp_path):
    """Starts router processes of one configuration on one Redis; gives (process, admin address)."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(running_redis(tmp_path))
        (tmp_path / "token").write_text(TOKEN)

        def start(config):
            write_config(tmp_path / "router.json", config)
            (port,) = free_ports(1)
            flags = ("--admin-port", str(port), "--admin-token-file", str(tmp_path / "token"))
            flags += (
                "--redis-timeout",
                "60",
            )  # one that counted by itself meanwhile would know nothing of the other's slots
            environment = {names.ENV_REDIS_URL: redis.url}
            router = RouterProcess(
                tmp_path / "router.json", tmp_path / f"router-{port}.log", *flags, environment=environment
            )
            stack.callback(router.kill)
            return router, f"http://127.0.0.1:{port}"

        yield start


async def test_slots_come_back_a_retry_is_billed_once_and_the_next_router_serves_at_once(
    start_upstream, start_process, until
):
    go = asyncio.Event()

    async def hold(request, upstream):
        if request.headers["x-request-id"].startswith("held"):
            await go.wait()
        return web.json_response({"usage": {"prompt_tokens": 10, "completion_tokens": 5}})

    worker = await start_upstream("a", hold)
    limits = TenantLimitsEntry(max_concurrent_requests=NUM_SLOTS, tokens_per_day=100_000)
    config = RouterConfig(
        models=[ModelEntry(name="m", price=PriceEntry(input="1000000", output="1000000"))],
        endpoints=[EndpointEntry(id="a", url=worker.url, models=["m"])],
        tenants=[TenantEntry(id="t", keys=[key_entry("k")], limits=limits)],
    )
    async with aiohttp.ClientSession() as session:

        async def ask(router, request_id):
            headers = {**bearer("k"), "x-request-id": request_id}
            try:
                async with session.post(f"{router.url}/v1/completions", json=BODY, headers=headers) as answer:
                    await answer.read()
                    return answer.status
            except aiohttp.ClientError:
                return None

        async def admin(url, path):
            async with session.get(url + path, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
                return (await answer.json())["data"]

        async def is_served(router, request_id="first"):
            return await ask(router, request_id) == 200

        async def is_ready(router):
            try:
                async with session.get(f"{router.url}/ready") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        async def is_written(url, number):
            return len(await admin(url, "/admin/usage")) == number

        first, admin_url = start_process(config)
        await until_true(lambda: is_served(first))
        await until_true(lambda: is_written(admin_url, 1))
        held = [asyncio.create_task(ask(first, f"held-{i}")) for i in range(NUM_SLOTS)]
        await until(lambda: worker.num_calls == 1 + NUM_SLOTS)
        second, admin_url = start_process(config)
        await until_true(lambda: is_ready(second))
        first.kill()
        broken = await asyncio.gather(*held)
        refused = await ask(second, "early")
        await until_true(lambda: is_served(second, "again"), DEAD_AFTER_S)
        go.set()
        retried = await asyncio.gather(*(ask(second, f"held-{i}") for i in range(NUM_SLOTS)))

        await until_true(lambda: is_written(admin_url, 2 + NUM_SLOTS))
        records = await admin(admin_url, "/admin/usage")
        (shown,) = await admin(admin_url, "/admin/tenants")

    assert broken == [None] * NUM_SLOTS
    assert refused == 429, "the killed router's slots are not free at once: its requests may still run"
    assert retried == [200] * NUM_SLOTS
    assert sorted(record["request_id"] for record in records if record["request_id"].startswith("held")) == [
        f"held-{i}" for i in range(NUM_SLOTS)
    ]
    assert float(shown["spent"]) == (2 + NUM_SLOTS) * USED
    day = shown["limits"]["tokens_day"]["used"]
    lease = 100_000 // 10
    assert (2 + NUM_SLOTS) * USED <= day <= (2 + NUM_SLOTS) * USED + NUM_SLOTS * RESERVED + lease
