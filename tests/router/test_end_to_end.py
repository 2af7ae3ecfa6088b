"""The router in front of real workers: `quire-worker --fake` processes with the real scheduler, prefix cache and event sockets."""

import asyncio
import contextlib
import random

import aiohttp
import anthropic
import openai
import pytest

from quire_contract.router_config import ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_contract.trust import Trust
from tests.router.processes import RouterProcess, WorkerProcess

START_TIMEOUT_S = 240.0


@pytest.fixture
def start_workers(model_dir, tmp_path):
    started = []

    def start(number, *flags):
        workers = [WorkerProcess(f"w{i}", model_dir, tmp_path / f"w{i}.log", "--fake", *flags) for i in range(number)]
        for worker in workers:
            worker.start()
            started.append(worker)
        return workers

    yield start
    for worker in started:
        worker.kill()


def config_for(workers):
    return RouterConfig(models=[ModelEntry(name="m")], endpoints=[worker.entry for worker in workers])


def in_step(router, number):
    return sum(e.ready and e.synced and e.digest is not None for e in router.app._pool) == number


def words(rng, number):
    return " ".join(f"w{rng.randrange(500)}" for _ in range(number))


async def chat(router, messages, **fields):
    """(worker, answer) of a chat."""
    body = {"model": "m", "messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    async with router.post(body, "/v1/chat/completions") as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["x-quire-worker"], await answer.json()


async def test_follow_ups_go_to_the_worker_with_their_longest_prefix_and_the_load_stays_even(
    start_workers, start_router, tmp_path, until
):
    """As in production: with a token on HTTP and CURVE on the event sockets, and refused to anybody else."""
    rng, trust = random.Random(7), Trust.generate()
    trust.write(tmp_path / "trust")
    workers = start_workers(2, "--trust-dir", str(tmp_path / "trust"))
    router = await start_router(config_for(workers), trust)
    await until(lambda: in_step(router, 2), START_TIMEOUT_S)
    prefixes = [words(rng, 600) for _ in range(8)]
    talks = [
        [{"role": "system", "content": prefixes[i % 8]}, {"role": "user", "content": words(rng, 20)}] for i in range(40)
    ]
    rng.shuffle(talks)
    last, cached = [None] * 40, [0] * 40
    counts, right, hits = {"w0": 0, "w1": 0}, 0, 0

    async def turn(number):
        nonlocal right, hits
        worker, answer = await chat(router, talks[number])
        counts[worker] += 1
        if last[number] is not None:
            right += worker == last[number]
            hits += answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= cached[number]
        last[number] = worker
        cached[number] = answer["usage"]["prompt_tokens"] // 16 * 16
        talks[number].append(answer["choices"][0]["message"])
        talks[number].append({"role": "user", "content": words(rng, 20)})

    for _ in range(3):
        for start in range(0, 40, 8):
            await asyncio.gather(*(turn(number) for number in range(start, start + 8)))

    assert right / 80 >= 0.9
    assert hits / 80 >= 0.9
    assert max(counts.values()) <= 1.5 * 60
    async with router.get("/debug/route?limit=200&explain=1") as answer:
        decisions = (await answer.json())["decisions"]
    async with router.session.post(
        workers[0].entry.url + "/v1/completions", json={"model": "m", "prompt": "w1"}
    ) as direct:
        assert direct.status == 401
    assert len({decision["request_id"] for decision in decisions}) == 120, "a request that was sent again has two"
    assert all(decision["reason"] and len(decision["candidates"]) == 2 for decision in decisions)
    assert {decision["level"] for decision in decisions} == {"precise"}


async def test_requests_of_a_killed_worker_are_answered_by_the_other_and_nothing_hangs(
    start_workers, start_router, until
):
    workers = start_workers(2, "--fake-decode-s-per-step", "0.02", "--max-num-seqs", "16")
    router = await start_router(config_for(workers))
    await until(lambda: in_step(router, 2), START_TIMEOUT_S)
    rng = random.Random(1)
    pool = router.app._pool

    async def stream():
        body = {"model": "m", "prompt": words(rng, 30), "max_tokens": 30, "stream": True, "ignore_eos": True}
        async with router.post(body) as answer:
            return answer.status, await answer.read()

    streaming = [asyncio.create_task(stream()) for _ in range(24)]
    talk = [{"role": "user", "content": words(rng, 30)}]
    asking = [asyncio.create_task(chat(router, talk, max_tokens=40)) for _ in range(40)]
    await until(lambda: all(endpoint.num_in_flight >= 20 for endpoint in pool))
    workers[0].kill()
    await until(lambda: not pool.get("w0").ready)
    async with asyncio.timeout(120):
        answers = await asyncio.gather(*asking)
        streams = await asyncio.gather(*streaming)
        late = [await chat(router, talk) for _ in range(5)]

    assert len(answers) == 40
    assert [status for status, _ in streams] == [200] * 24
    assert all(text.endswith(b"data: [DONE]\n\n") for _, text in streams)
    assert sum(b"stream_broken" in text for _, text in streams) <= 16
    assert {worker for worker, _ in late} == {"w1"}
    assert all(endpoint.num_in_flight == 0 for endpoint in pool)


async def test_a_restarted_worker_starts_without_credit_and_a_drained_one_gets_nothing_new(
    start_workers, start_router, until
):
    workers = start_workers(2)
    router = await start_router(config_for(workers))
    await until(lambda: in_step(router, 2), START_TIMEOUT_S)
    talk = [{"role": "user", "content": words(random.Random(3), 300)}]
    holder, _ = await chat(router, talk)
    await until(lambda: router.app._index.num_blocks(holder) >= 18)

    worker = next(w for w in workers if w.id == holder)
    worker.kill()
    await until(lambda: router.app._index.num_blocks(holder) == 0)
    worker.start()
    await until(lambda: in_step(router, 2), START_TIMEOUT_S)
    credit = router.app._index.num_blocks(holder)
    async with router.session.post(worker.entry.url + "/internal/drain") as answer:
        drained = answer.status
    await until(lambda: not router.app._pool.get(holder).ready)
    others = {(await chat(router, talk))[0] for _ in range(5)}

    assert (credit, drained) == (0, 200)
    assert holder not in others


@pytest.fixture
def router_process(tmp_path):
    """Starts quire-router as a process of its own, with a file of this configuration."""
    processes = []

    def start(config):
        write_config(tmp_path / "own.json", config)
        processes.append(RouterProcess(tmp_path / "own.json", tmp_path / "router.log"))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


async def test_the_console_script_serves_reloads_its_file_and_ends_on_sigterm(
    start_upstream, make_config, router_process, tmp_path
):
    worker = await start_upstream("a")
    at_once = RouterSettingsEntry(admission=AdmissionSettings(no_endpoint_timeout_s=0))
    router = router_process(RouterConfig(models=[ModelEntry(name="m")], endpoints=[], settings=at_once))
    body = {"model": "m", "prompt": "w1 w2", "max_tokens": 2}

    async def until_status(expected):
        async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
            status = None
            while status != expected:
                with contextlib.suppress(OSError):
                    async with session.post(router.url + "/v1/completions", json=body) as answer:
                        status = answer.status

    await until_status(503)
    write_config(tmp_path / "own.json", make_config(worker))
    await until_status(200)
    code = router.end(timeout_s=60)
    log = router.log_path.read_text()

    assert code == 0
    assert "event=stopped" in log
    assert "w1 w2" not in log


async def test_clients_of_the_other_apis_are_served_through_the_router_and_find_their_prefix_again(
    start_workers, start_router, until
):
    workers = start_workers(2)
    router = await start_router(config_for(workers))
    await until(lambda: in_step(router, 2), START_TIMEOUT_S)
    talk = [{"role": "user", "content": words(random.Random(5), 300)}]

    async with anthropic.AsyncAnthropic(base_url=router.url, api_key="x", max_retries=0) as client:
        first = await client.messages.with_raw_response.create(model="m", max_tokens=4, messages=talk)
        holder = first.headers["x-quire-worker"]
        await until(lambda: router.app._index.num_blocks(holder) >= 18)
        async with client.messages.stream(model="m", max_tokens=4, messages=talk) as stream:
            again = await stream.get_final_message()
            served_by = stream.response.headers["x-quire-worker"]
        counted = await client.messages.count_tokens(model="m", messages=talk)
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0) as client:
        answer = await client.responses.with_raw_response.create(model="m", input=talk, max_output_tokens=4)
    response = answer.parse()

    assert served_by == answer.headers["x-quire-worker"] == holder
    assert again.usage.cache_read_input_tokens == response.usage.input_tokens_details.cached_tokens >= 18 * 16
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens == counted.input_tokens
    assert response.usage.input_tokens == counted.input_tokens


async def test_a_small_workers_own_queue_stays_short_and_a_burst_is_served_whole(start_workers, start_router, until):
    workers = start_workers(2, "--max-num-seqs", "2")
    router = await start_router(config_for(workers))
    await until(lambda: in_step(router, 2), START_TIMEOUT_S)
    await until(lambda: all(endpoint.report is not None for endpoint in router.app._pool), START_TIMEOUT_S)
    rng, reported = random.Random(9), []
    tell = router.app._pool.get("w0").on_change

    def note(endpoint):
        if endpoint.report is not None:
            reported.append(endpoint.report.waiting)
        tell(endpoint)

    for endpoint in router.app._pool:
        endpoint.on_change = note
    talks = [[{"role": "user", "content": words(rng, 40)}] for _ in range(80)]
    answers = await asyncio.gather(*(chat(router, talk, max_tokens=16) for talk in talks))

    assert len(answers) == 80
    assert max(reported) <= 5, "the bound of a worker's queue, and one more"
