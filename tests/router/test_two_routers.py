"""Two router processes in front of workers with the real scheduler and prefix cache: a restart of either kind costs no truth."""

import asyncio
import contextlib
import random
import re

import aiohttp
import pytest

from quire_contract.router_config import ModelEntry, RouterConfig, write_config
from tests.router.processes import RouterProcess, WorkerProcess

POLL_S = 0.02
START_TIMEOUT_S = 240.0
NUM_PREFIXES = 12
NUM_WORKERS = 3
ROUTE = re.compile(r"(\w+); cached=(\d+)/(\d+)")


class Fleet:
    """Three workers, two routers, and conversations that go through both in turn."""

    def __init__(self, model_dir, folder, session):
        self.session, self.rng = session, random.Random(5)
        self.prefixes = [self.words(400) for _ in range(NUM_PREFIXES)]
        self.workers = {
            name: WorkerProcess(name, model_dir, folder / f"{name}.log", "--fake")
            for name in (f"w{number}" for number in range(NUM_WORKERS))
        }
        for worker in self.workers.values():
            worker.start()
        entries = [worker.entry for worker in self.workers.values()]
        write_config(folder / "router.json", RouterConfig(models=[ModelEntry(name="m")], endpoints=entries))
        self.routers = [RouterProcess(folder / "router.json", folder / f"router{number}.log") for number in (0, 1)]

    def words(self, number):
        return " ".join(f"w{self.rng.randrange(500)}" for _ in range(number))

    async def shown(self, router, **query):
        """What the router says of its workers, and of its choices, oldest first."""
        async with self.session.get(self.routers[router].url + "/debug/route", params=query) as answer:
            body = await answer.json()
        return body["endpoints"], body["decisions"][::-1]

    async def in_step(self, router):
        """Whether the router follows all workers."""
        with contextlib.suppress(OSError, aiohttp.ClientError):
            endpoints, _ = await self.shown(router)
            return len(endpoints) == NUM_WORKERS and all(
                e["ready"] and e["events_in_step"] and e["bundle"] for e in endpoints
            )
        return False

    async def blocks_known(self, router):
        """Of each worker's cache."""
        endpoints, _ = await self.shown(router)
        return {endpoint["id"]: endpoint["blocks_known"] for endpoint in endpoints}

    async def known(self, router, number):
        """The share of the prompts' tokens, over the router's last choices, that it knew some worker to hold."""
        _, decisions = await self.shown(router, limit=number, explain=1)
        best = [max(candidate["matched_tokens"] for candidate in decision["candidates"]) for decision in decisions]
        return sum(best) / sum(decision["prompt_tokens"] for decision in decisions)

    async def until_in_step(self, *routers):
        async with asyncio.timeout(START_TIMEOUT_S):
            for router in routers:
                while not await self.in_step(router):  # noqa: ASYNC110 - another process sets no event
                    await asyncio.sleep(POLL_S)

    async def ask(self, router, prefix):
        """(worker, tokens it was credited with, tokens it had cached, prompt's tokens); None: no answer now."""
        system = self.words(100) if prefix is None else self.prefixes[prefix]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": self.words(20)}]
        body = {"model": "m", "messages": messages, "max_tokens": 4, "ignore_eos": True}
        try:
            async with self.session.post(self.routers[router].url + "/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    return None
                usage = (await answer.json())["usage"]
                credited = int(ROUTE.fullmatch(answer.headers["x-quire-route"])[2])
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                return answer.headers["x-quire-worker"], credited, cached, usage["prompt_tokens"]
        except aiohttp.ClientError:
            return None

    def close(self):
        for process in (*self.workers.values(), *self.routers):
            process.kill()


@pytest.fixture
async def fleet(model_dir, tmp_path):
    async with aiohttp.ClientSession() as session:
        fleet = Fleet(model_dir, tmp_path, session)
        try:
            await fleet.until_in_step(0, 1)
            yield fleet
        finally:
            fleet.close()


@contextlib.asynccontextmanager
async def under_load(fleet, seen, *, every_new=0):
    """Four clients, each with prefixes of its own, so that nobody computes a prefix that another one is just asking for.

    `every_new`: so often, a prompt that nobody holds; 0: never."""
    stop = asyncio.Event()

    async def client(number):
        turn = 0
        while not stop.is_set():
            prefix = number + 4 * (turn // 2 % (NUM_PREFIXES // 4))
            router = turn % 2
            is_new = every_new and turn % every_new == 0
            seen.append((router, await fleet.ask(router, None if is_new else prefix)))
            turn += 1
            if seen[-1][1] is None:
                await asyncio.sleep(POLL_S)

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def until_answers(seen, number):
    """Until so many more answers came from each router."""
    start = len(seen)
    async with asyncio.timeout(START_TIMEOUT_S):
        while min(sum(r == one and a is not None for r, a in seen[start:]) for one in (0, 1)) < number:  # noqa: ASYNC110 - a list
            await asyncio.sleep(POLL_S)
    return start


def hit_rate(answers):
    return sum(cached for _, _, cached, _ in answers) / sum(tokens for *_, tokens in answers)


async def test_a_router_restarted_under_load_chooses_as_well_as_the_other(fleet):
    """A prefix may still move to a worker that is faster at the moment, from either router: that is a choice, not ignorance."""
    seen = []

    async with under_load(fleet, seen):
        await until_answers(seen, 60)
        fleet.routers[1].kill()
        fleet.routers[1].start()
        await fleet.until_in_step(1)
        await until_answers(seen, 4)  # what was chosen before is answered
        start = await until_answers(seen, 100)
        known = [await fleet.known(router, 100) for router in (0, 1)]
    answers = [[a for r, a in seen[start:] if r == router and a is not None] for router in (0, 1)]

    assert min(known) > 0.9
    assert abs(known[1] - known[0]) <= 0.02
    assert [answer for one in answers for answer in one if answer[1] > answer[2]] == []
    assert min(map(hit_rate, answers)) > 0.8


async def test_a_restarted_router_knows_every_cache_again_though_nothing_happens_there(fleet):
    """It asks for what it missed; it need not wait for a worker's next event."""
    for turn in range(2 * NUM_PREFIXES):
        await fleet.ask(turn % 2, turn // 2)

    fleet.routers[1].kill()
    fleet.routers[1].start()
    await fleet.until_in_step(1)
    known = await fleet.blocks_known(1)
    async with asyncio.timeout(START_TIMEOUT_S):
        while await fleet.blocks_known(0) != known:  # noqa: ASYNC110 - what the other was told as it happened may come late
            await asyncio.sleep(POLL_S)
    answers = [await fleet.ask(1, prefix) for prefix in range(NUM_PREFIXES)]

    assert sum(known.values()) >= NUM_PREFIXES * 400 // 16
    assert [credited >= 400 and cached >= credited for _, credited, cached, _ in answers] == [True] * NUM_PREFIXES


async def test_a_worker_restarted_at_its_address_gets_no_credit_for_its_former_cache(fleet):
    seen = []

    async with under_load(fleet, seen, every_new=5):
        await until_answers(seen, 60)
        # Of three workers one may have got no prefix at all.
        credited, victim = max((answer[1], answer[0]) for _, answer in seen if answer is not None)
        fleet.workers[victim].kill()
        start = await until_answers(seen, 20)
        fleet.workers[victim].start()
        await fleet.until_in_step(0, 1)
        await until_answers(seen, 100)
    since = [answer for _, answer in seen[start:] if answer is not None]

    assert credited >= 400
    assert {worker for worker, *_ in since} == {"w0", "w1", "w2"}
    assert [answer for answer in since if answer[1] > answer[2]] == []
