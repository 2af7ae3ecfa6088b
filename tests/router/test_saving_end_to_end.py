"""What real workers send, of every API, is kept and shared: `quire-worker --fake` behind a real router."""

import asyncio
import os
import random
import signal
import subprocess
import sys

import pytest
from cluster.processes import free_ports

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_contract.router_settings import RouterSettingsEntry, SavingSettings

START_S = 240.0
USER = {"role": "user", "content": "w1 w2 w3"}
BODIES = {
    "/v1/completions": {"prompt": "w1 w2 w3", "max_tokens": 12},
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 12, "n": 2},
    "/v1/responses": {"input": "w1 w2 w3", "max_output_tokens": 12},
    "/v1/messages": {"messages": [USER], "max_tokens": 12},
}
MANY = {"model": "m", "prompt": "w1 w2 w3", "max_tokens": 200, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture
def start_worker(model_dir, tmp_path):
    started = []

    def start(*flags):
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "quire_worker", "--fake", "--model", str(model_dir), "--port", str(port)]
        command += ["--served-model-name", "m", "--pod-name", "w", *flags]
        with (tmp_path / "worker.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        return EndpointEntry(id="w", url=f"http://127.0.0.1:{port}", models=["m"])

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def serve(start_worker, start_router, until):
    async def start(saving, *flags):
        config = RouterConfig(
            models=[ModelEntry(name="m")],
            endpoints=[start_worker(*flags)],
            settings=RouterSettingsEntry(saving=saving),
        )
        router = await start_router(config)
        await until(lambda: all(e.ready and e.digest is not None for e in router.app._pool), START_S)
        return router

    return start


async def ask(router, path, body):
    async with router.post(body, path) as answer:
        return answer.status, answer.headers["x-quire-cache"], await answer.read()


async def test_answers_of_every_api_are_kept_streamed_and_whole(serve):
    router = await serve(SavingSettings(response_cache=True, coalesce=True))

    for path, fields in BODIES.items():
        for stream in (False, True):
            body = {"model": "m", **fields, "temperature": 0, "stream": stream}
            first, second = await ask(router, path, body), await ask(router, path, body)

            assert (first[0], first[1], second[1]) == (200, "miss", "hit"), (path, stream)
            assert first[2] == second[2]


async def test_readers_that_come_and_go_all_get_the_undisturbed_answer(serve, until):
    router = await serve(SavingSettings(coalesce=True), "--fake-decode-s-per-step", "0.005")
    rng = random.Random(3)
    leaders = await ask(router, "/v1/completions", MANY)

    async def read(leave_after, wait_for):
        for _ in range(wait_for):
            await asyncio.sleep(0)
        got = b""
        async with router.post(MANY) as answer:
            async for data in answer.content.iter_any():
                got += data
                if len(got) > leave_after:
                    return None
        return answer.headers["x-quire-cache"], got

    ends = await asyncio.gather(*(read(rng.choice([500, 3000, 10**9, 10**9]), rng.randrange(300)) for _ in range(60)))

    stayed = [end for end in ends if end is not None]
    assert len(stayed) >= 10
    assert {texts_of(got) for _, got in stayed} == {texts_of(leaders[2])}
    assert sum(mark == "shared" for mark, _ in stayed) >= len(stayed) - 3
    await until(lambda: router.app._pool.get("w").num_in_flight == 0)


def texts_of(stream):
    """The answer without its id and time, which each generation has of its own."""
    return tuple(part.split(b'"choices"', 1)[-1] for part in stream.split(b"\n\n"))
