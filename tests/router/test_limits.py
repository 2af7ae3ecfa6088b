"""Limits of tenants over HTTP, in a router by itself: what passes, what is refused, what is given back."""

import asyncio
import json
import time

import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import LimitSettings, RouterSettingsEntry
from quire_contract.router_tenants import PriceEntry, TenantEntry, TenantLimitsEntry
from tests.router.tenant_help import bearer, key_entry

POLL_S = 0.005


def answer_with(prompt=10, output=5, status=200):
    async def answer(request, upstream):
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        return web.json_response({"id": "x", "usage": usage} if status < 400 else {"error": {}}, status=status)

    return answer


def held_until(event):
    async def answer(request, upstream):
        await event.wait()
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    return answer


def config_of(upstream, price=None, limits=None, settings=None, **fields):
    tenant = TenantEntry(id="t", keys=[key_entry("k")], limits=TenantLimitsEntry(**(limits or {})), **fields)
    return RouterConfig(
        models=[ModelEntry(name="m", price=price)],
        endpoints=[EndpointEntry(id="a", url=upstream.url, models=["m"])],
        tenants=[tenant],
        settings=settings,
    )


BODY = {"model": "m", "prompt": "x" * 40, "max_tokens": 20}
"""10 tokens of prompt, as they are guessed without a tokenizer."""


@pytest.fixture
def served(start_upstream, start_router):
    async def start(behaviour=None, **fields):
        upstream = await start_upstream("a", behaviour or answer_with())
        router = await start_router(config_of(upstream, **fields))
        await router.until_ready(1)
        return router, upstream

    return start


async def ask(router, body=BODY, path="/v1/completions"):
    async with router.post(body, path, headers=bearer("k")) as answer:
        return answer.status, await answer.json(), answer.headers


async def statuses(router, number, body=BODY):
    return [(await ask(router, body))[0] for _ in range(number)]


async def test_requests_of_a_minute_are_counted_and_the_refusal_says_when_to_come_back(served):
    router, worker = await served(limits={"requests_per_minute": 3})
    began_s = time.monotonic()

    found = [await ask(router) for _ in range(4)]
    took_s = time.monotonic() - began_s

    assert [status for status, _, _ in found] == [200, 200, 200, 429]
    assert [headers["x-ratelimit-remaining-requests"] for _, _, headers in found] == ["2", "1", "0", "0"]
    assert found[0][2]["x-ratelimit-limit-requests"] == "3"
    assert found[0][2]["x-ratelimit-reset-requests"] == "1m0s"
    error, headers = found[3][1]["error"], found[3][2]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 59 - took_s <= int(headers["Retry-After"]) <= 61
    assert worker.num_calls == 3


async def test_anthropics_clients_get_refusals_in_their_own_form(served):
    router, _ = await served(limits={"requests_per_minute": 1})
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}

    first = await ask(router, body, "/v1/messages")
    second = await ask(router, body, "/v1/messages")

    assert first[0] == 200
    assert (second[0], second[1]["type"], second[1]["error"]["type"]) == (429, "error", "rate_limit_error")


async def test_tokens_are_reserved_whole_and_what_was_not_used_is_given_back(served):
    router, worker = await served(limits={"tokens_per_minute": 45})

    found = [await ask(router) for _ in range(4)]

    assert [status for status, _, _ in found] == [200, 200, 429, 429]
    assert found[0][2]["x-ratelimit-limit-tokens"] == "45"
    assert "limit 45, used 30, requested 30" in found[2][1]["error"]["message"]
    assert worker.num_calls == 2


async def test_requests_at_the_same_time_cannot_reserve_one_token_twice(served, until):
    event = asyncio.Event()
    router, worker = await served(held_until(event), limits={"tokens_per_minute": 100})

    tasks = [asyncio.create_task(ask(router)) for _ in range(10)]
    await until(lambda: sum(task.done() for task in tasks) == 7)
    event.set()
    found = sorted([(await task)[0] for task in tasks])

    assert found == [200] * 3 + [429] * 7
    assert worker.num_calls == 3


async def test_requests_at_the_same_time_are_bounded_and_their_places_come_back(served, until):
    event = asyncio.Event()
    router, _ = await served(held_until(event), limits={"max_concurrent_requests": 2})

    tasks = [asyncio.create_task(ask(router)) for _ in range(5)]
    await until(lambda: sum(task.done() for task in tasks) == 3)
    event.set()
    found = sorted([(await task)[0] for task in tasks])
    after = await statuses(router, 3)

    assert found == [200, 200, 429, 429, 429]
    assert after == [200, 200, 200]


@pytest.mark.parametrize(("status", "passes"), [(500, 3), (429, 3), (400, 1)], ids=["ours", "no room", "the client's"])
async def test_a_request_that_failed_by_our_fault_gives_everything_back(status, passes, served):
    router, worker = await served(answer_with(status=status), limits={"requests_per_minute": 1, "tokens_per_day": 30})

    found = await statuses(router, 3)

    assert found == [status] * passes + [429] * (3 - passes)
    assert worker.num_calls == passes


async def test_a_request_larger_than_its_limit_is_told_that_waiting_does_not_help(served):
    router, worker = await served(limits={"tokens_per_minute": 20})

    status, body, headers = await ask(router)

    assert (status, headers["x-should-retry"], "Retry-After" in headers) == (429, "false", False)
    assert "Lower max_tokens" in body["error"]["message"]
    assert worker.num_calls == 0


async def test_a_days_quota_is_a_quota_and_comes_back_at_midnight(served):
    router, _ = await served(limits={"tokens_per_day": 30})

    found = [await ask(router) for _ in range(2)]

    assert [status for status, _, _ in found] == [200, 429]
    assert found[1][1]["error"]["code"] == "insufficient_quota"
    assert 1 <= int(found[1][2]["Retry-After"]) <= 86_400


async def test_a_prepaid_balance_is_spent_to_the_last_unit_and_not_beyond(served):
    price = PriceEntry(input="1000000", output="1000000")
    router, worker = await served(price=price, billing="prepaid", credit="46")

    found = [await ask(router) for _ in range(4)]

    assert [status for status, _, _ in found] == [200, 200, 429, 429]
    assert found[2][1]["error"]["code"] == "insufficient_quota"
    assert "16 of 46 left" in found[2][1]["error"]["message"]
    assert worker.num_calls == 2


async def test_credit_that_is_paid_in_counts_at_once(served, until):
    price = PriceEntry(input="1000000", output="1000000")
    router, worker = await served(price=price, billing="prepaid", credit="30")
    before = await statuses(router, 2)

    write_config(router.config_path, config_of(worker, price=price, billing="prepaid", credit="60"))
    await until(lambda: router.app._access.tenants.tenants["t"].credit == "60")

    assert before == [200, 429]
    assert await statuses(router, 2) == [200, 200]


def stream_of(events, *, usage):
    async def answer(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for i in range(events):
            await response.write(b'data: {"choices": [{"text": "w%d"}]}\n\n' % i)
        if usage:
            said = {"prompt_tokens": 7, "completion_tokens": events, "prompt_tokens_details": {"cached_tokens": 4}}
            await response.write(b"data: " + json.dumps({"usage": said}, separators=(",", ":")).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


@pytest.mark.parametrize(("usage", "used"), [(True, 7 + 3), (False, 10 + 4)], ids=["told", "guessed"])
async def test_a_stream_is_settled_when_it_ends(usage, used, served):
    router, _ = await served(stream_of(3, usage=usage), limits={"tokens_per_day": 1000})

    async with router.post({**BODY, "stream": True}, headers=bearer("k")) as answer:
        await answer.read()
    after = await ask(router, {**BODY, "max_tokens": 1000})

    assert f"used {used}," in after[1]["error"]["message"]


async def test_a_stream_that_the_client_leaves_gives_its_place_back(served, until):
    async def endless(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b'data: {"choices": [{"text": "w"}]}\n\n')
            await asyncio.sleep(POLL_S)

    router, worker = await served(endless, limits={"max_concurrent_requests": 1})

    for _ in range(3):
        worker.abandoned.clear()
        async with router.post({**BODY, "stream": True}, headers=bearer("k")) as answer:
            assert answer.status == 200
            await answer.content.readany()
            answer.close()
        await asyncio.wait_for(worker.abandoned.wait(), 60)

    assert worker.num_abandoned == 3


async def test_a_client_that_leaves_before_the_answer_pays_for_its_prompt(served, until):
    router, worker = await served(held_until(asyncio.Event()), limits={"tokens_per_day": 100})

    for _ in range(3):
        worker.abandoned.clear()
        asking = asyncio.create_task(ask(router))
        await until(lambda: worker.num_calls > worker.num_abandoned)
        asking.cancel()
        await asyncio.wait_for(worker.abandoned.wait(), 60)
    after = await ask(router, {**BODY, "max_tokens": 1000})

    assert "used 30," in after[1]["error"]["message"]


async def test_too_little_time_makes_no_request_free(served):
    router, worker = await served(held_until(asyncio.Event()), limits={"tokens_per_day": 100, "requests_per_minute": 2})
    hasty = {**BODY, "timeout_s": 1.0}

    found = [(await ask(router, hasty))[0] for _ in range(3)]

    assert found == [504, 504, 429]
    assert worker.num_calls == 2


async def test_chats_that_name_no_maximum_reserve_what_the_settings_say(served):
    settings = RouterSettingsEntry(limits=LimitSettings(default_output_tokens=77))
    router, _ = await served(limits={"tokens_per_minute": 50}, settings=settings)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 2}

    _, answer, _ = await ask(router, body, "/v1/chat/completions")

    requested = int(answer["error"]["message"].split("requested ")[1].split(".")[0])
    assert 154 <= requested <= 164
