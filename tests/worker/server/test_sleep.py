"""Sleeping and waking, over real sockets, processes and signals: with a fake engine, and with the demo model on the real one."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq

from quire_contract import names
from quire_contract.kv_events import BlockRemoved, BlockStored, decode_batch
from quire_contract.load_report import decode_report
from quire_contract.startup_report import StartupReport, decode_startup
from quire_contract.trust import Trust

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
SLOW = ("--fake-decode-s-per-step", "0.02")
BODY = {"model": "tiny", "prompt": "the fox", "max_tokens": 8, "seed": 1, "ignore_eos": True, "temperature": 1.3}
LONG = BODY | {"max_tokens": 150}


async def post(http: aiohttp.ClientSession, worker: Any, path: str, **options: Any) -> tuple[int, Any]:
    async with http.post(f"{worker.base}{path}", **options) as response:
        return response.status, await response.json()


@pytest.fixture(scope="module")
def trust_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    Trust.generate().write(folder)
    return folder


async def get(http: aiohttp.ClientSession, worker: Any, path: str) -> tuple[int, Any, str]:
    async with http.get(f"{worker.base}{path}") as response:
        return response.status, await response.json(), response.headers.get(names.HEADER_REASON, "")


async def startup_of(http: aiohttp.ClientSession, worker: Any) -> StartupReport:
    async with http.get(f"{worker.base}{names.PATH_STARTUP}") as response:
        return decode_startup(await response.read())


async def sleep_of(http: aiohttp.ClientSession, worker: Any) -> str:
    return (await startup_of(http, worker)).sleep


class Heard:
    """What a worker's event socket says."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.set(zmq.SUBSCRIBE, b"")
        self._sub.connect(endpoint)
        self.stored = self.removed = self.num_heard = 0
        self.asleep = False

    def until(self, is_so: Callable[[], bool]) -> None:
        """Listen until it is; fails after a while of silence."""
        while not is_so():
            assert self._sub.poll(60_000), "nothing more is said"
            topic, _, payload = self._sub.recv_multipart()
            self.num_heard += 1
            if topic.startswith(b"load@"):
                self.asleep = decode_report(payload).asleep
                continue
            for event in decode_batch(payload).events:
                if isinstance(event, BlockStored):
                    self.stored += len(event.block_hashes)
                elif isinstance(event, BlockRemoved):
                    self.removed += len(event.block_hashes)

    def close(self) -> None:
        self._context.destroy(linger=0)


async def text_of(http: aiohttp.ClientSession, worker: Any, body: Any = BODY) -> str:
    status, answer = await post(http, worker, names.PATH_COMPLETIONS, json=body)
    assert status == 200, answer
    return str(answer["choices"][0]["text"])


async def test_a_sleeping_worker_refuses_requests_and_lives_and_answers_as_before_once_it_is_woken(
    launch: Callable[..., Any], http: aiohttp.ClientSession, metric: Callable[..., Any]
) -> None:
    worker = launch("--served-model-name", "tiny").wait_until_ready()
    before = await text_of(http, worker)

    slept = await post(http, worker, names.PATH_SLEEP)
    ready = await get(http, worker, names.PATH_READY)
    health = await get(http, worker, names.PATH_HEALTH)
    async with http.post(f"{worker.base}{names.PATH_COMPLETIONS}", json=BODY) as refused:
        refusal = (refused.status, refused.headers[names.HEADER_REASON])
    told = await metric(worker, names.VLLM_ENGINE_SLEEP_STATE, sleep_state="weights_offloaded")
    woken = await post(http, worker, names.PATH_WAKE)
    after = await text_of(http, worker)

    assert (slept[0], slept[1]["state"], slept[1]["changed"]) == (200, "asleep", True)
    assert slept[1]["size_bytes"] > 0
    assert (ready[0], ready[2]) == (503, names.REASON_ASLEEP)
    assert health[:2] == (200, {"status": "ok", "phase": "asleep"})
    assert refusal == (503, names.REASON_ASLEEP)
    assert told == 1
    assert (woken[0], woken[1]["state"], woken[1]["changed"]) == (200, "awake", True)
    assert after == before
    assert await metric(worker, names.VLLM_ENGINE_SLEEP_STATE, sleep_state="awake") == 1
    report = await startup_of(http, worker)
    assert (report.sleep, report.num_wakes, report.phase) == ("awake", 1, "ready")


async def test_asking_twice_changes_nothing_and_says_so(
    launch: Callable[..., Any], http: aiohttp.ClientSession
) -> None:
    worker = launch("--served-model-name", "tiny").wait_until_ready()

    awake = await post(http, worker, names.PATH_WAKE)
    both = await asyncio.gather(*(post(http, worker, names.PATH_SLEEP) for _ in range(2)))
    woken = await asyncio.gather(*(post(http, worker, names.PATH_WAKE) for _ in range(2)))

    assert (awake[0], awake[1]["state"], awake[1]["changed"]) == (200, "awake", False)
    assert sorted((code, answer["state"], answer["changed"]) for code, answer in both) == [
        (200, "asleep", False),
        (200, "asleep", True),
    ]
    assert sorted((code, answer["state"], answer["changed"]) for code, answer in woken) == [
        (200, "awake", False),
        (200, "awake", True),
    ]


async def test_sleep_is_refused_while_requests_run_and_waits_for_them_if_asked(
    launch: Callable[..., Any], http: aiohttp.ClientSession, eventually: Any
) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW).wait_until_ready()
    with worker.engine_held():
        running = asyncio.create_task(text_of(http, worker, LONG))
        await eventually(lambda: get(http, worker, "/load"), (200, {"server_load": 1}, ""))

        refused = await post(http, worker, names.PATH_SLEEP)
    waiting = await post(http, worker, f"{names.PATH_SLEEP}?wait=90")
    text = await running

    assert (refused[0], refused[1]["error"]["code"]) == (409, "busy")
    assert (waiting[0], waiting[1]["state"]) == (200, "asleep")
    assert text


async def test_a_wake_ends_a_wait_for_running_requests_and_they_go_on(
    launch: Callable[..., Any], http: aiohttp.ClientSession, eventually: Any
) -> None:
    worker = launch("--served-model-name", "tiny", *SLOW).wait_until_ready()
    with worker.engine_held():
        running = asyncio.create_task(text_of(http, worker, LONG))
        await eventually(lambda: get(http, worker, "/load"), (200, {"server_load": 1}, ""))
        sleeping = asyncio.create_task(post(http, worker, f"{names.PATH_SLEEP}?wait=90"))
        await eventually(lambda: sleep_of(http, worker), "falling_asleep")

        woken = await post(http, worker, names.PATH_WAKE)
        slept = await sleeping

    assert (woken[0], woken[1]["state"]) == (200, "awake")
    assert (slept[0], slept[1]["error"]["code"]) == (409, "busy")
    assert await running
    assert (await get(http, worker, names.PATH_READY))[0] == 200


@pytest.mark.parametrize("wait", ["-1", "soon", "nan", "1e9"])
async def test_a_wait_that_is_no_number_of_seconds_is_refused(
    wait: str, worker: Any, http: aiohttp.ClientSession
) -> None:
    status, answer = await post(http, worker, f"{names.PATH_SLEEP}?wait={wait}")

    assert (status, answer["error"]["param"]) == (400, "wait")


async def test_a_worker_that_drains_cannot_sleep_and_one_that_sleeps_can_drain(
    launch: Callable[..., Any], http: aiohttp.ClientSession
) -> None:
    worker = launch("--served-model-name", "tiny").wait_until_ready()
    await post(http, worker, names.PATH_DRAIN)
    refused = await post(http, worker, names.PATH_SLEEP)
    async with http.delete(f"{worker.base}{names.PATH_DRAIN}") as undrained:
        assert undrained.status == 200
    await post(http, worker, names.PATH_SLEEP)

    drained = await post(http, worker, names.PATH_DRAIN)
    reason = (await get(http, worker, names.PATH_READY))[2]
    async with http.delete(f"{worker.base}{names.PATH_DRAIN}") as undrained:
        still = undrained.status

    assert (refused[0], refused[1]["error"]["code"]) == (409, "draining")
    assert drained == (200, {"draining": True, "num_requests": 0})
    assert reason == "draining"
    assert still == 200
    assert (await get(http, worker, names.PATH_READY))[2] == names.REASON_ASLEEP


async def test_sigterm_ends_a_sleeping_worker_well(launch: Callable[..., Any], http: aiohttp.ClientSession) -> None:
    worker = launch("--served-model-name", "tiny").wait_until_ready()
    await post(http, worker, names.PATH_SLEEP)

    worker.process.send_signal(signal.SIGTERM)

    assert await asyncio.to_thread(worker.wait) == 0


async def test_a_worker_whose_engine_dies_asleep_ends_too(
    launch: Callable[..., Any], http: aiohttp.ClientSession
) -> None:
    worker = launch("--served-model-name", "tiny").wait_until_ready()
    await post(http, worker, names.PATH_SLEEP)

    os.kill(worker.engine_pid(), signal.SIGKILL)

    assert await asyncio.to_thread(worker.wait) == 1


async def test_a_worker_may_start_asleep(launch: Callable[..., Any], http: aiohttp.ClientSession) -> None:
    worker = launch("--served-model-name", "tiny", "--start-asleep").wait_until_ready()
    asleep = await get(http, worker, names.PATH_READY)

    woken = await post(http, worker, names.PATH_WAKE)

    assert (asleep[0], asleep[2]) == (503, names.REASON_ASLEEP)
    assert woken[1]["state"] == "awake"
    assert await text_of(http, worker)


async def test_only_holders_of_the_token_may_put_a_worker_of_a_release_to_sleep(
    launch: Callable[..., Any], http: aiohttp.ClientSession, trust_dir: Path
) -> None:
    worker = launch("--served-model-name", "tiny", "--trust-dir", str(trust_dir)).wait_until_ready()
    token = {names.HEADER_TOKEN: (trust_dir / "token").read_text().strip()}

    stranger = [(await post(http, worker, path))[0] for path in (names.PATH_SLEEP, names.PATH_WAKE)]
    async with http.get(f"{worker.base}{names.PATH_STARTUP}") as response:
        stranger.append(response.status)
    trusted = await post(http, worker, names.PATH_SLEEP, headers=token)

    assert stranger == [401, 401, 401]
    assert trusted[0] == 200


async def test_routers_hear_that_the_cache_is_gone_and_that_the_worker_sleeps(
    launch: Callable[..., Any], http: aiohttp.ClientSession
) -> None:
    worker = launch("--served-model-name", "tiny", "--kv-events-endpoint", "tcp://127.0.0.1:*").wait_until_ready()
    _, sources, _ = await get(http, worker, "/kv_event_sources")
    heard = Heard(sources["events"])
    try:
        await asyncio.to_thread(heard.until, lambda: heard.num_heard > 0)  # a subscription takes a moment
        await text_of(http, worker, BODY | {"prompt": "the fox " * 40})
        await asyncio.to_thread(heard.until, lambda: heard.stored > 0)

        await post(http, worker, names.PATH_SLEEP)
        await asyncio.to_thread(heard.until, lambda: heard.asleep and heard.removed == heard.stored)

        assert heard.stored == heard.removed > 0
    finally:
        heard.close()


async def test_the_demo_answers_bitwise_the_same_after_sleep_and_gives_its_pool_back(
    start_real: Callable[..., Any], http: aiohttp.ClientSession
) -> None:
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "2048", "--max-model-len", "512")
    worker = start_real(DEMO, "--served-model-name", "tiny", *flags).wait_until_ready()
    body = {
        "model": "tiny",
        "prompt": "Once upon a time",
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": 3,
        "logprobs": 3,
    }
    _, first = await post(http, worker, names.PATH_COMPLETIONS, json=body)
    prompts = [" ".join(str(number) for number in range(start, start + 90)) for start in range(40)]
    await asyncio.gather(
        *(post(http, worker, names.PATH_COMPLETIONS, json=body | {"prompt": p, "max_tokens": 1}) for p in prompts)
    )
    awake_bytes = anonymous_bytes(worker.engine_pid())

    _, slept = await post(http, worker, names.PATH_SLEEP)
    asleep_bytes = anonymous_bytes(worker.engine_pid())
    _, woken = await post(http, worker, names.PATH_WAKE)
    _, second = await post(http, worker, names.PATH_COMPLETIONS, json=body)

    assert second["choices"] == first["choices"]
    assert slept["size_bytes"] > 2**20
    assert awake_bytes - asleep_bytes > 2**20
    assert woken["state"] == "awake"
    report = await startup_of(http, worker)
    files_bytes = sum(path.stat().st_size for path in DEMO.glob("*.safetensors"))
    assert 0.9 * files_bytes < report.weights_bytes < files_bytes
    assert report.first_token_s is not None
    assert report.process_s is not None and report.weights_s is not None and report.engine_s is not None
    assert report.ready_s == pytest.approx(report.process_s + report.weights_s + report.engine_s, abs=0.001)


def anonymous_bytes(pid: int) -> int:
    """Of the process's own memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Anonymous")
