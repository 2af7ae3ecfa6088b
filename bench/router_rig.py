"""A router process with everything switched on, two workers and a Redis, for bench/router_soak.py: and how to look at them all."""

import asyncio
import contextlib
import hashlib
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from quire_contract import names
from quire_contract.router_config import ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import (
    AdmissionSettings,
    FilterEntry,
    RouterSettingsEntry,
    SavingSettings,
)
from quire_contract.router_tenants import PriceEntry, TenantEntry, TenantKeyEntry, TenantLimitsEntry
from quire_contract.trust import Trust

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from client_server import DEMO  # noqa: E402 - the tests' own processes
from redis_server import running_redis  # noqa: E402

from tests.router.processes import RouterProcess, WorkerProcess, free_ports  # noqa: E402

NUM_TENANTS = 4
SMALL_TENANT_SLOTS = 6
BLOCKED_WORD = "forbidden"
POLL_S = 0.05
START_S = 90.0


def key_of(number: int) -> str:
    """A tenant's key. The last tenant's few slots are asked of Redis one by one."""
    return f"soak-key-{number}"


def _tenant(number: int) -> TenantEntry:
    slots = SMALL_TENANT_SLOTS if number == NUM_TENANTS - 1 else 400
    return TenantEntry(
        id=f"t{number}",
        keys=[TenantKeyEntry(id="k", sha256=hashlib.sha256(key_of(number).encode()).hexdigest())],
        limits=TenantLimitsEntry(
            max_concurrent_requests=slots,
            requests_per_minute=10_000_000,
            tokens_per_minute=1_000_000_000,
            tokens_per_day=100_000_000_000,
            tokens_per_month=1_000_000_000_000,
        ),
        billing="prepaid",
        credit="1000000",
        priority=number,
    )


def config_of(workers: list[WorkerProcess]) -> RouterConfig:
    """Tenants with every limit, cache, coalescing, filters on prompts and answers."""
    settings = RouterSettingsEntry(
        admission=AdmissionSettings(waiting_per_worker=1, max_queued_requests=4000, comment_s=0.2),
        saving=SavingSettings(response_cache=True, coalesce=True, response_cache_mib=2, response_ttl_s=2.0),
        filters=[
            FilterEntry(name="word", words=[BLOCKED_WORD], stage="prompt"),
            FilterEntry(name="pii", pii=["email", "phone"], action="redact"),
        ],
    )
    return RouterConfig(
        models=[ModelEntry(name="m", price=PriceEntry(input="1", output="2"))],
        endpoints=[worker.entry for worker in workers],
        tenants=[_tenant(number) for number in range(NUM_TENANTS)],
        settings=settings,
    )


@dataclass
class Rig:
    """All of it, running."""

    url: str
    admin_url: str
    admin_token: str
    router_pid: int
    workers: list[WorkerProcess]
    session: aiohttp.ClientSession
    at_rest: dict[str, float] = field(default_factory=dict)

    async def gauges(self) -> dict[str, float]:
        """Everything that counts what is under way, by a name of its own; all 0 at rest."""
        found: dict[str, float] = {}
        metrics = await self._text(f"{self.admin_url}/metrics")
        for name in (
            names.QUIRE_ROUTER_IN_FLIGHT,
            names.QUIRE_ROUTER_QUEUE_LENGTH,
            names.QUIRE_ROUTER_QUEUE_BYTES,
            names.QUIRE_ROUTER_HELD_REQUESTS,
            names.QUIRE_ROUTER_SHARED_BYTES,
            names.QUIRE_ROUTER_USAGE_QUEUED,
            names.QUIRE_ROUTER_LIMIT_LEASES,
        ):
            found[name] = sum_of(metrics, name)
        for worker in self.workers:
            metrics = await self._text(f"{worker.entry.url}/metrics")
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
                found[f"{worker.id} {name}"] = sum_of(metrics, f"vllm:{name}")
        for tenant in (await self.tenants()).values():
            for name, limit in tenant["limits"].items():
                found[f"{tenant['id']} {name} reserved"] = limit["reserved"]
            slots = tenant["limits"]["concurrency"]
            found[f"{tenant['id']} slots that are not free"] = slots["limit"] - slots["remaining"]
        return found

    async def tenants(self) -> dict[str, dict[str, Any]]:
        """What the admin API shows of each."""
        async with self.session.get(f"{self.admin_url}/admin/tenants", headers=self._admin) as answer:
            return {tenant["id"]: tenant for tenant in (await answer.json())["data"]}

    async def count(self, name: str, labels: str = "") -> float:
        """A counter of the router's."""
        return sum_of(await self._text(f"{self.admin_url}/metrics"), name, labels)

    def num_files(self) -> int:
        """Open files and sockets of the router."""
        return sum(1 for _ in Path(f"/proc/{self.router_pid}/fd").iterdir())

    @property
    def _admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.admin_token}"}

    async def _text(self, url: str) -> str:
        async with self.session.get(url, headers=self._admin if url.startswith(self.admin_url) else {}) as answer:
            answer.raise_for_status()
            return await answer.text()


def sum_of(metrics: str, name: str, labels: str = "") -> float:
    """Of all series of a name whose labels contain `labels`."""
    lines = re.findall(rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", metrics, re.MULTILINE)
    return sum(float(value) for shown, value in lines if labels in shown)


@contextlib.asynccontextmanager
async def running(folder: Path, *worker_flags: str) -> AsyncIterator[Rig]:
    """Started and ready."""
    with contextlib.ExitStack() as stack:
        trust = Trust.generate()
        trust.write(folder / "trust")
        redis = stack.enter_context(running_redis(folder))
        flags = ("--fake", "--trust-dir", str(folder / "trust"), *worker_flags)
        workers = [WorkerProcess(f"w{i}", DEMO, folder / f"w{i}.log", *flags) for i in range(2)]
        for worker in workers:
            worker.start()
            stack.callback(worker.kill)
        config, token = folder / "router.json", "soak-admin-token"
        write_config(config, config_of(workers))
        (admin_port,) = free_ports(1)
        (folder / "admin-token").write_text(token)
        router = RouterProcess(
            config,
            folder / "router.log",
            *("--trust-dir", str(folder / "trust"), "--disable-log-requests"),
            *("--admin-port", str(admin_port), "--admin-token-file", str(folder / "admin-token")),
            environment={names.ENV_REDIS_URL: redis.url},
        )
        stack.callback(router.kill)
        async with aiohttp.ClientSession() as session:
            admin_url = f"http://127.0.0.1:{admin_port}"
            rig = Rig(router.url, admin_url, token, router.pid, workers, session)
            await until_ready(rig)
            yield rig


async def until_ready(rig: Rig) -> None:
    """Until the router knows both workers and their cache, and nothing is under way."""
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with rig.session.get(f"{rig.admin_url}/debug/route?limit=0", headers=rig._admin) as answer:
                    found = (await answer.json())["endpoints"]
                if all(e["ready"] and e["events_in_step"] and e["bundle"] for e in found):
                    return
            await asyncio.sleep(POLL_S)
