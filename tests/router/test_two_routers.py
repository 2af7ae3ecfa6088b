"""Two router processes in front of workers with the real scheduler and prefix cache: a restart of either kind costs no truth."""

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config

POLL_S = 0.02
START_TIMEOUT_S = 60.0
NUM_PREFIXES = 12
ROUTE = re.compile(r"(\w+); cached=(\d+)/(\d+)")


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Process:
    """A process that may be killed and started again, on the same ports."""

    def __init__(self, command, log_path):
        self.command, self.log_path, self.running = command, log_path, None

    def start(self):
        with self.log_path.open("ab") as log:
            self.running = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    def kill(self):
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None


class Fleet:
    """Three workers, two routers, and conversations that go through both in turn."""

    def __init__(self, model_dir, folder, session):
        self.session, self.rng = session, random.Random(5)
        self.prefixes = [self.words(400) for _ in range(NUM_PREFIXES)]
        entries, self.workers = [], {}
        for name in ("w0", "w1", "w2"):
            port, events, replay = (str(port) for port in free_ports(3))
            events, replay = f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}"
            command = [sys.executable, "-m", "quire_worker", "--fake", "--model", str(model_dir), "--port", port]
            command += ["--served-model-name", "m", "--pod-name", name, "--disable-log-requests"]
            command += ["--kv-events-endpoint", events, "--kv-replay-endpoint", replay]
            self.workers[name] = Process(command, folder / f"{name}.log")
            url = f"http://127.0.0.1:{port}"
            entries.append(EndpointEntry(id=name, url=url, models=["m"], events=events, replay=replay))
        write_config(folder / "router.json", RouterConfig(models=[ModelEntry(name="m")], endpoints=entries))
        self.routers, self.urls = [], []
        for number, port in enumerate(free_ports(2)):
            command = [sys.executable, "-m", "quire_router", "--config", str(folder / "router.json")]
            self.routers.append(Process([*command, "--port", str(port)], folder / f"router{number}.log"))
            self.urls.append(f"http://127.0.0.1:{port}")

    def words(self, number):
        return " ".join(f"w{self.rng.randrange(500)}" for _ in range(number))

    async def in_step(self, router):
        """Whether the router follows all workers."""
        with contextlib.suppress(OSError, aiohttp.ClientError):
            async with self.session.get(self.urls[router] + "/debug/route") as answer:
                shown = (await answer.json())["endpoints"]
            return all(e["ready"] and e["events_in_step"] and e["bundle"] for e in shown)
        return False

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
            async with self.session.post(self.urls[router] + "/v1/chat/completions", json=body) as answer:
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
            for process in (*fleet.workers.values(), *fleet.routers):
                process.start()
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
            await asyncio.sleep(0)

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
    seen = []

    async with under_load(fleet, seen):
        await until_answers(seen, 60)
        fleet.routers[1].kill()
        fleet.routers[1].start()
        await fleet.until_in_step(1)
        await until_answers(seen, 4)  # what was chosen before is answered
        start = await until_answers(seen, 100)
    stayed, restarted = ([a for r, a in seen[start:] if r == router and a is not None] for router in (0, 1))

    assert hit_rate(stayed) > 0.9
    assert abs(hit_rate(restarted) - hit_rate(stayed)) <= 0.02


async def test_a_worker_restarted_at_its_address_gets_no_credit_for_its_former_cache(fleet):
    seen = []

    async with under_load(fleet, seen, every_new=5):
        await until_answers(seen, 60)
        before = [answer for _, answer in seen if answer is not None and answer[0] == "w1"]
        fleet.workers["w1"].kill()
        start = await until_answers(seen, 20)
        fleet.workers["w1"].start()
        await fleet.until_in_step(0, 1)
        await until_answers(seen, 100)
    since = [answer for _, answer in seen[start:] if answer is not None]

    assert max(credited for _, credited, *_ in before) >= 400
    assert {worker for worker, *_ in since} == {"w0", "w1", "w2"}
    assert [answer for answer in since if answer[1] > answer[2]] == []
