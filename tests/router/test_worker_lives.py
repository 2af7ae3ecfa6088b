"""Workers without KV events that begin a new life at their old address: what the former one was sent earns the new one no credit."""

import re

import pytest

PROMPT = {"model": "m", "prompt": " ".join(f"w{number % 500}" for number in range(2000))}
ROUTE = re.compile(r"(\w+); cached=(\d+)/(\d+)")


async def ask(router):
    """(worker, whether it was credited with anything)."""
    async with router.post(PROMPT) as answer:
        assert answer.status == 200
        return answer.headers["x-quire-worker"], int(ROUTE.fullmatch(answer.headers["x-quire-route"])[2]) > 0


async def credited(router, worker):
    """Tokens that the latest choice believed the worker to hold."""
    async with router.get("/debug/route", params={"explain": 1, "limit": 1}) as answer:
        (decision,) = (await answer.json())["decisions"]
    (tokens,) = [c["matched_tokens"] for c in decision["candidates"] if c["endpoint"] == worker]
    return tokens


@pytest.fixture
async def pair(start_upstream, start_router, make_config):
    """Two workers and a router in front of them; the first one was sent the prompt."""
    workers = {name: await start_upstream(name) for name in ("a", "b")}
    router = await start_router(make_config(*workers.values()))
    await router.until_ready(2)
    first, _ = await ask(router)
    assert await ask(router) == (first, True)
    return router, workers, first


async def test_a_worker_whose_port_was_closed_gets_no_credit_when_it_is_back(pair):
    router, workers, first = pair

    await workers[first].stop()
    await router.until_ready(1)
    await workers[first].start()
    await router.until_ready(2)

    await ask(router)
    assert await credited(router, first) == 0


async def test_a_request_that_found_the_port_closed_leaves_no_credit_behind(pair):
    """It may be placed there after whatever else told of the worker's end."""
    router, workers, first = pair

    await workers[first].stop()
    second, _ = await ask(router)
    await router.until_ready(1)
    await workers[first].start()
    await router.until_ready(2)

    assert second != first
    assert await ask(router) == (second, True)
    assert await credited(router, first) == 0


async def test_a_worker_that_says_it_cannot_serve_gets_no_credit_afterwards(pair):
    """Its process may have begun anew between two probes."""
    router, workers, first = pair

    workers[first].ready_status = 503
    await router.until_ready(1)
    workers[first].ready_status = 200
    await router.until_ready(2)

    await ask(router)
    assert await credited(router, first) == 0


async def test_a_worker_that_answers_its_probes_too_late_keeps_its_credit(pair):
    router, workers, first = pair

    workers[first].is_stopped = True
    await router.until_ready(1)
    workers[first].is_stopped = False
    await router.until_ready(2)

    assert await ask(router) == (first, True)
