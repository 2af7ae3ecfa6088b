"""`quire up` that follows demand, with real routers, real workers and the operator's autoscaler: from zero and back, nothing lost."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import psutil

from quire_contract.names import ENV_PORT, PATH_READY
from tests.cli.files import put
from tests.cli.scaled import POLL_S, ScaledUp, scaled_up

SLEEPY = {
    "minReplicas": 0,
    "maxReplicas": 2,
    "demandPerReplica": 4,
    "pollingIntervalSeconds": 600,
    "cooldownSeconds": 1,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
}
"""Looked at only when a queue begins, until a test says otherwise."""

LONG = 3000
"""Tokens of an answer that takes a minute: nobody sees its end."""


async def test_a_burst_wakes_a_service_at_zero_at_once_and_its_end_lets_it_sleep_again(tmp_path: Path) -> None:
    async with scaled_up(tmp_path, SLEEPY) as up:
        ready = up.told
        begun = [process.pid for process in up.workers()]

        async with up.under_load(40, tokens=4) as answers:
            await up.wait_for(r"m: 0 -> 1 worker \(Activated: ")
            up.change(pollingIntervalSeconds=1)
            await up.wait_for(r"m: 1 -> \d workers \(")
        await up.wait_for(r"m: \d -> 0 workers \(ScaledToZero: ")
        await up.until(lambda: not up.workers())
        decisions = up.decisions()
        shown = up.scaling()

    assert "starting the router" in ready and "(m; 0 workers)" in ready
    assert "scales: m 0 to 2 workers" in up.told
    assert begun == []
    assert len(answers) >= 40 and set(answers) == {(200, 4)}
    assert decisions[0] == (0, 1, "Activated"), "it was not looked at for another ten minutes"
    assert decisions[1][:2] == (1, 2), "ten times the target, and the second decision has the maximum"
    assert decisions[-1][1:] == (0, "ScaledToZero")
    assert (shown["replicas"], shown["readyReplicas"], shown["demand"]["running"]) == (0, 0, 0)


async def test_what_comes_while_the_last_worker_leaves_is_held_and_answered(tmp_path: Path) -> None:
    async with scaled_up(tmp_path, {**SLEEPY, "pollingIntervalSeconds": 1}) as up:
        supervisor = psutil.Process(up.process.pid)
        answers, descriptors = [await up.ask(stream=True)], []
        for _ in range(3):
            await up.until(lambda: up.scaling()["replicas"] == 0)
            descriptors.append(supervisor.num_fds())
            answers += await asyncio.gather(*up.asking(4))
        await up.until(lambda: len(supervisor.children(recursive=True)) == 1)
        await up.until(lambda: supervisor.num_fds() <= descriptors[0] + 2)  # no descriptor stays
        folders = len(list((up.folder / "pods").iterdir()))
        code = await up.end()

    assert answers == [(200, 4)] * 13
    assert folders <= 1, "the router's own"
    assert code == 0


async def test_a_worker_that_is_killed_while_replicas_come_loses_no_request(tmp_path: Path) -> None:
    async with (
        scaled_up(tmp_path, {**SLEEPY, "pollingIntervalSeconds": 1, "cooldownSeconds": 60}) as up,
        up.under_load(24, tokens=40) as answers,
    ):
        first = (await up.wait_for(r"(m-worker-\w+-0): starting"))[1]
        up.kill(first)
        await up.wait_for(rf"{first}: restarting \(killed by signal 9")
        second = (await up.wait_for(r"(m-worker-\w+-1): ready"))[1]
        up.kill(second)
        await up.wait_for(rf"{second}: ready")

    assert len(answers) >= 24 and set(answers) == {(200, 40)}


async def test_a_worker_that_leaves_moves_its_streams_and_may_even_be_killed_meanwhile(tmp_path: Path) -> None:
    """The first drains until its time is over, the second is killed before."""
    engine = {"drainTimeoutSeconds": 1}
    async with scaled_up(
        tmp_path,
        {**SLEEPY, "minReplicas": 3, "maxReplicas": 3, "pollingIntervalSeconds": 1},
        step_s=0.05,
        engine=engine,
    ) as up:
        async with up.under_load(12, tokens=160, whole=False) as answers:
            await up.until(lambda: (up.scaling().get("demand") or {}).get("running") == 12)

            up.change(minReplicas=2, maxReplicas=2)
            await up.wait_for(r"m-worker-\w+-\d: stopped")
            up.change(minReplicas=1, maxReplicas=1)
            leaving = (await up.wait_for(r"(m-worker-\w+-\d): stopping"))[1]
            with contextlib.suppress(psutil.NoSuchProcess):  # we are late, and its time was over, too
                up.kill(leaving)
            await up.wait_for(rf"{leaving}: stopped")
        replicas = up.scaling()["readyReplicas"]

    assert len(answers) >= 12 and set(answers) == {(200, 160)}
    assert replicas == 1


async def test_a_router_that_is_killed_breaks_only_its_connections_and_a_retry_is_billed_once(tmp_path: Path) -> None:
    async with scaled_up(tmp_path, {**SLEEPY, "pollingIntervalSeconds": 1, "cooldownSeconds": 60}) as up:

        async def ask(tokens: int) -> tuple[int, int] | None:
            try:
                return await up.ask(tokens=tokens)
            except aiohttp.ClientError:
                return None

        waiting = [asyncio.create_task(ask(LONG)) for _ in range(3)]
        await up.wait_for(r"m: 0 -> 1 worker ")
        worker = (await up.wait_for(r"(m-worker-\w+-0): starting"))[1]
        up.kill("quire-router")
        broken = await asyncio.gather(*waiting)
        await up.wait_for(r"quire-router: ready")
        await up.until(lambda: up.scaling()["readyReplicas"] == 1)
        retried = [await ask(30) for _ in range(3)]
        billed = await up.usage()
        restarts = up.told.count(f"{worker}: restarting")

    assert broken == [None] * 3
    assert retried == [(200, 30)] * 3
    assert [(record["status"], record["output_tokens"]) for record in billed] == [(200, 30)] * 3
    assert restarts == 0, "the worker went on"


async def test_replicas_and_scaling_of_the_file_are_followed_while_it_runs(tmp_path: Path) -> None:
    async with scaled_up(tmp_path, {**SLEEPY, "minReplicas": 1, "maxReplicas": 1}) as up:
        plain = up.manifest.read_text()
        begun = up.scaling()["replicas"]

        up.change(minReplicas=2, maxReplicas=2)
        await up.wait_for(r"m: 1 -> 2 workers \(")
        await up.until(lambda: len(up.workers()) == 2)
        put(up.manifest, plain[: plain.index("  scaling:")] + "  replicas: 1\n")
        await up.wait_for(r"m: 2 -> 1 worker \(the file says so\)")
        await up.until(lambda: len(up.workers()) == 1)
        answer = await up.ask()
        put(up.manifest, plain)
        await up.wait_for(r"m: 1 to 1 worker, as demand is")

    assert begun == 1
    assert answer == (200, 4)


async def until_answers(up: ScaledUp, worker: psutil.Process, status: int) -> None:
    """Until the worker's own readiness is `status`."""
    url = f"http://127.0.0.1:{worker.environ()[ENV_PORT]}{PATH_READY}"
    async with asyncio.timeout(60):
        while True:
            async with up.http.get(url) as answer:
                if answer.status == status:
                    return
            await asyncio.sleep(POLL_S)


async def test_a_standby_sleeps_at_zero_and_is_woken_in_place_of_a_new_process(tmp_path: Path) -> None:
    standby = {"pollingIntervalSeconds": 1, "standby": {"replicas": 1}}
    async with scaled_up(tmp_path, {**SLEEPY, **standby}) as up:
        name = (await up.wait_for(r"(m-worker-\w+-0): asleep"))[1]
        (begun,) = up.workers()
        await until_answers(up, begun, 503)

        answers = await asyncio.gather(*up.asking(4))
        await up.wait_for(rf"{name}: ready \(woken in")
        await up.wait_for(rf"{name}: asleep$")
        await until_answers(up, begun, 503)
        again = await asyncio.gather(*up.asking(4))
        after = [worker.pid for worker in up.workers()]
        await up.until(lambda: up.scaling()["asleep"] == 1)
        code = await up.end()

    assert answers + again == [(200, 4)] * 8
    assert after == [begun.pid]
    assert (code, up.told.count(f"{name}: starting")) == (0, 1)


async def test_a_sleeper_that_dies_sleeps_again_and_beyond_it_others_start(tmp_path: Path) -> None:
    standby = {"pollingIntervalSeconds": 1, "cooldownSeconds": 600, "standby": {"replicas": 1}}
    async with scaled_up(tmp_path, {**SLEEPY, **standby}) as up:
        name = (await up.wait_for(r"(m-worker-\w+-0): asleep"))[1]
        up.kill(name)
        await up.wait_for(rf"{name}: restarting \(killed by signal 9")
        await up.wait_for(rf"{name}: asleep")

        async with up.under_load(12, tokens=100) as answers:
            await up.wait_for(r"m-worker-\w+-1: ready")
            await up.until(lambda: (up.scaling()["replicas"], up.scaling()["asleep"]) == (2, 0))

    assert len(answers) >= 12 and set(answers) == {(200, 100)}
