"""Acceptance: streams over three worker processes end as if nothing had been, though one is killed, one stopped, one drained in turn."""

import asyncio
import random
import re
import signal

import aiohttp
import pytest

from quire_contract.router_config import ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import FaultSettings, RouterSettingsEntry
from quire_contract.trust import Trust
from tests.client_server import DEMO
from tests.router.processes import RouterProcess, WorkerProcess

POLL_S = 0.02
START_TIMEOUT_S = 240.0
WAVE_TIMEOUT_S = 120.0
NUM_STREAMS = 200
OWN = re.compile(
    rb'"(?:id|item_id)":"[a-z]+[-_][0-9a-f]{8,}[-_0-9a-f]*"|"(?:created|created_at|completed_at)":[0-9.]+'
    rb'|"(?:cached_tokens|cache_read_input_tokens|input_tokens)":[0-9]+|: keep-alive\n\n'
)
"""What is another one in each run."""
ID = re.compile(rb'{"id":"[^"]*"')
CHOICE = re.compile(rb'"choices":\[{"index":\d+')
FAULTS = FaultSettings(lost_after_s=1.5, max_resumes=3)


class Fleet:
    """Three workers and a router."""

    def __init__(self, workers, router, session, trust):
        self.workers, self.router, self._session = workers, router, session
        self._headers = {"x-quire-token": trust.token}

    async def stream(self, path, body, progress=None):
        """(worker, the stream's bytes)."""
        parts = []
        async with self._session.post(self.router.url + path, json={"model": "m", "stream": True, **body}) as answer:
            assert answer.status == 200, await answer.text()
            async for part in answer.content.iter_any():
                parts.append(part)
                if progress is not None:
                    progress[0] += part.count(b"\n\n")
            return answer.headers["x-quire-worker"], b"".join(parts)

    async def endpoints(self):
        async with self._session.get(self.router.url + "/debug/route?limit=0") as answer:
            return {e["id"]: e for e in (await answer.json())["endpoints"]}

    async def until(self, condition, timeout_s=START_TIMEOUT_S):
        """Until the router's view of the endpoints is such."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    if condition(await self.endpoints()):
                        return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(POLL_S)

    async def until_whole(self):
        await self.until(lambda found: all(e["ready"] and e["events_in_step"] and e["bundle"] for e in found.values()))

    async def drain(self, worker, method):
        async with self._session.request(method, worker.entry.url + "/internal/drain", headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()

    async def warm(self, requests):
        """Let each worker answer these itself: one that has just started compiles a grammar longer than all other streams may take."""
        await asyncio.gather(*(self._ask(worker, *request) for worker in self.workers for request in requests))

    async def _ask(self, worker, path, body):
        url, body = worker.entry.url + path, {"model": "m", **body, "max_tokens": 1}
        async with self._session.post(url, json=body, headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()

    async def resumes(self):
        async with self._session.get(self.router.url + "/metrics") as answer:
            text = await answer.text()
        found = re.findall(r'^quire_router_resumes_total{reason="(\w+)"} ([0-9.]+)$', text, re.MULTILINE)
        return {reason: int(float(value)) for reason, value in found if float(value)}


@pytest.fixture
async def start_fleet(tmp_path):
    """Three workers of a model folder with these flags, and a router that they trust."""
    started = []

    async def start(model_dir, *flags, faults=FAULTS):
        trust = Trust.generate()
        trust.write(tmp_path / "trust")
        flags = ("--trust-dir", str(tmp_path / "trust"), *flags)
        workers = [WorkerProcess(f"w{i}", model_dir, tmp_path / f"w{i}.log", *flags) for i in range(3)]
        for worker in workers:
            worker.start()
            started.append(worker)
        config = RouterConfig(
            models=[ModelEntry(name="m")],
            endpoints=[worker.entry for worker in workers],
            settings=RouterSettingsEntry(faults=faults),
        )
        write_config(tmp_path / "router.json", config)
        router = RouterProcess(
            tmp_path / "router.json", tmp_path / "router.log", "--trust-dir", str(tmp_path / "trust")
        )
        started.append(router)
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        started_sessions.append(session)
        fleet = Fleet(workers, router, session, trust)
        await fleet.until_whole()
        return fleet

    started_sessions = []
    yield start
    for session in started_sessions:
        await session.close()
    for process in started:
        process.kill()


def words(rng, number):
    return " ".join(f"w{rng.randrange(500)}" for _ in range(number))


def fake_requests(number):
    """Greedy and seeded ones, of all four APIs, some with several choices or a stop."""
    rng = random.Random(6)
    requests = []
    for i in range(number):
        talk = [{"role": "user", "content": words(rng, 20 + i % 30)}]
        chance = {"temperature": 0} if i % 2 else {"temperature": 0.8, "seed": i}
        size = 60 + i % 40
        match i % 5:
            case 0:
                body = {"prompt": words(rng, 30), "max_tokens": size, "ignore_eos": True, **chance}
                requests.append(("/v1/completions", body))
            case 1:
                requests.append(("/v1/messages", {"messages": talk, "max_tokens": size, "temperature": 0}))
            case 2:
                requests.append(("/v1/responses", {"input": talk, "max_output_tokens": size, "temperature": 0}))
            case 3:
                body = {"messages": talk, "max_tokens": size, "n": 2, "ignore_eos": True, **chance}
                requests.append(("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}))
            case _:
                body = {"messages": talk, "max_tokens": size, "ignore_eos": True, "logprobs": True, **chance}
                requests.append(("/v1/chat/completions", body))
    return requests


async def wave(fleet, requests, disturb=None):
    """All streams at once, each without what is its own; meanwhile `disturb` once each has begun, and sent a few events on average."""
    progress = [[0] for _ in requests]
    streams = [
        asyncio.create_task(fleet.stream(path, body, counted))
        for (path, body), counted in zip(requests, progress, strict=True)
    ]

    def are_under_way():
        counts = [number for (number,) in progress]
        return all(counts) and sum(counts) >= 8 * len(requests)

    async with asyncio.timeout(WAVE_TIMEOUT_S):
        if disturb is not None:
            while not are_under_way():  # noqa: ASYNC110 - counts, nobody sets an event
                await asyncio.sleep(POLL_S)
            await disturb()
        answers = await asyncio.gather(*streams)
    assert all(len(set(ID.findall(text))) <= 1 for _, text in answers), "an answer keeps its id wherever it goes on"
    return [normal(text) for _, text in answers]


async def four_waves(fleet, requests, drain, warming=()):
    """The streams of an undisturbed wave; of one whose first worker is killed, whose second is stopped, whose third drains.

    `warming`: requests that each worker has answered before."""
    first, second, _ = fleet.workers

    async def kill():
        first.kill()

    async def stop():
        second.signal(signal.SIGSTOP)

    await fleet.warm(warming)
    expected = await wave(fleet, requests)
    killed = await wave(fleet, requests, kill)
    first.start()
    await fleet.until_whole()
    await fleet.warm(warming)
    stopped = await wave(fleet, requests, stop)
    second.signal(signal.SIGCONT)
    await fleet.until_whole()
    return expected, killed, stopped, await wave(fleet, requests, drain)


def normal(text):
    """A stream without what is its own. Several choices take turns as it happens, so each comes by itself."""
    events = OWN.sub(b"", text).split(b"\n\n")
    if b'"index":1' in text and b"chat.completion.chunk" in text:
        events.sort(key=lambda event: CHOICE.search(event)[0] if CHOICE.search(event) else b"~")
    return events


async def test_200_streams_survive_a_kill_a_stop_and_a_drain_byte_for_byte(start_fleet, model_dir):
    fleet = await start_fleet(
        model_dir, "--fake", "--fake-decode-s-per-step", "0.03", "--max-num-seqs", "256", "--drain-timeout", "0.2"
    )
    first, second, third = fleet.workers
    requests = fake_requests(NUM_STREAMS)

    async def drain():
        await fleet.drain(third, "POST")
        await fleet.until(lambda found: found[third.id]["draining"])
        late = await asyncio.gather(*(fleet.stream(*request) for request in requests[:20]))
        served_late.update(worker for worker, _ in late)

    served_late = set()
    expected, *disturbed = await four_waves(fleet, requests, drain)
    resumes = await fleet.resumes()
    found = await fleet.endpoints()

    for found_now in disturbed:
        assert [number for number in range(NUM_STREAMS) if found_now[number] != expected[number]] == []
    assert served_late <= {first.id, second.id}
    assert all(resumes[reason] > 20 for reason in ("died", "lost", "migrate")), resumes
    assert sum(endpoint["in_flight"] for endpoint in found.values()) == 0


async def test_clients_that_leave_free_their_workers_rows_and_blocks(start_fleet, model_dir):
    flags = ("--fake", "--fake-decode-s-per-step", "0.02", "--max-num-seqs", "64")
    fleet = await start_fleet(model_dir, *flags, faults=FaultSettings(lost_after_s=600.0))  # nobody is, however slow
    body = {"max_tokens": 3000, "ignore_eos": True}
    progress = [0]
    await fleet.until(lambda found: all(e["free_blocks"] is not None for e in found.values()))
    at_rest = {pod: endpoint["free_blocks"] for pod, endpoint in (await fleet.endpoints()).items()}

    def prompt(number):
        return {**body, "prompt": words(random.Random(number), 30)}

    streams = [asyncio.create_task(fleet.stream("/v1/completions", prompt(i), progress)) for i in range(100)]
    while progress[0] < 500:  # noqa: ASYNC110 - a count, nobody sets an event
        await asyncio.sleep(POLL_S)
    busy = sum(endpoint["in_flight"] for endpoint in (await fleet.endpoints()).values())
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    await fleet.until(lambda found: not any(e["in_flight"] or e["load"] for e in found.values()))
    await fleet.until(lambda found: {pod: e["free_blocks"] for pod, e in found.items()} == at_rest)

    assert busy == 100
    assert await fleet.resumes() == {}


NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 60, "maxItems": 60}
SCHEMA = {"type": "object", "properties": {"numbers": NUMBERS}, "required": ["numbers"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True}}


def real_requests(number):
    """Greedy, seeded, with a JSON schema and with a tool; each with words of its own."""
    requests = []
    for i in range(number):
        talk = [{"role": "user", "content": f"Say the numbers from {i} to {i + 60}."}]
        body = {"messages": talk, "max_tokens": 200}
        match i % 4:
            case 0:
                body |= {"temperature": 0, "ignore_eos": True}
            case 1:
                body |= {"temperature": 0.9, "seed": i, "ignore_eos": True, "presence_penalty": 0.5, "logprobs": True}
            case 2:
                form = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": SCHEMA, "strict": True}}
                body |= {"temperature": 0.7, "seed": i, "response_format": form}
            case _:
                body |= {"temperature": 0.7, "seed": i, "tools": [TOOL], "tool_choice": "required"}
        requests.append(("/v1/chat/completions", body))
    return requests


async def test_streams_of_a_real_model_with_schemas_and_tools_survive_byte_for_byte(start_fleet):
    flags = ("--dtype", "float32", "--num-gpu-blocks-override", "1024", "--tool-call-parser", "hermes")
    fleet = await start_fleet(DEMO, *flags, "--compute-threads", "1", "--drain-timeout", "0.1")
    third = fleet.workers[2]
    requests = real_requests(16)

    async def drain():
        await fleet.drain(third, "POST")

    expected, *disturbed = await four_waves(fleet, requests, drain, requests[2:4])
    resumes = await fleet.resumes()

    for found_now in disturbed:
        assert [number for number in range(16) if found_now[number] != expected[number]] == []
    assert all(resumes[reason] > 2 for reason in ("died", "lost", "migrate")), resumes
    assert sum(b'"tool_calls":[{' in b"".join(events) for events in expected) == 4
