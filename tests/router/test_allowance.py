"""Answers that name no length, of tenants whose quota or balance ends: streams end with it, whole answers are told how long they may be."""

import asyncio
import json
import re

import pytest
from aiohttp import web

from quire_contract.prompt_bundle import PromptBundle
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_contract.router_settings import FilterEntry, LimitSettings, RouterSettingsEntry, SavingSettings
from quire_contract.router_tenants import PriceEntry, TenantLimitsEntry
from quire_contract.trust import Trust
from tests.router.tenant_help import bearer, tenant

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
TRUST = Trust.generate()
TOKEN = "t" * 32
MESSAGES = [{"role": "user", "content": "hello " * 20}]
CHAT_BODY = {"model": "m", "messages": MESSAGES, "stream": True, "temperature": 0}
PROMPT = 31
"""Its tokens, as they are guessed without a tokenizer."""
PORTION = 10


def streaming(num_tokens, *, replays, at_once=1, together=1):
    """A worker whose stream has so many tokens, `at_once` in an event, `together` events in a write; with `replays` it tells their ids, as
    ours do."""

    async def answer(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        written = []
        for number in range(0, num_tokens, at_once):
            ids = ",".join(str(number + i) for i in range(at_once))
            comment = f": s c3RhdGU\n: u {PROMPT} 0 {number}\n: t 0 {ids}\n" if replays else ""
            chunk = {"choices": [{"index": 0, "delta": {"content": f"w{number} "}}]}
            written.append(f"{comment}data: {json.dumps(chunk)}\n\n".encode())
            if len(written) < together:
                continue
            await response.write(b"".join(written))
            written = []
            for _ in range(20):
                await asyncio.sleep(0)
        await response.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


async def whole(request, upstream):
    most = json.loads(upstream.bodies[-1]).get("max_tokens", 5)
    usage = {"prompt_tokens": PROMPT, "completion_tokens": most, "total_tokens": PROMPT + most}
    return web.json_response({"choices": [{"index": 0, "message": {}, "finish_reason": "length"}], "usage": usage})


@pytest.fixture
def serve(start_upstream, start_router):
    async def start(behaviour, *, price=None, bundle=None, saving=None, filters=(), **fields):
        limits = TenantLimitsEntry(**fields.pop("limits", {}))
        worker = await start_upstream("a", behaviour, bundle)
        config = RouterConfig(
            models=[ModelEntry(name="m", price=price)],
            endpoints=[EndpointEntry(id="a", url=worker.url, models=["m"])],
            tenants=[tenant("t", "k", limits=limits, **fields)],
            settings=RouterSettingsEntry(
                limits=LimitSettings(default_output_tokens=PORTION),
                saving=saving or SavingSettings(),
                filters=list(filters),
            ),
        )
        router = await start_router(config, TRUST, admin_port=0, admin_token=TOKEN)
        await router.until_ready(1)
        return router, worker

    return start


async def ask(router, body=CHAT_BODY, path=CHAT):
    async with router.post(body, path, headers=bearer("k")) as answer:
        return answer.status, await answer.read(), answer.headers


async def told(router):
    """What the admin API says of the tenant."""
    async with router.session.get(router.app.admin_url + "/admin/tenants", headers=bearer(TOKEN)) as answer:
        return (await answer.json())["data"][0]


async def used(router, limit="tokens_day"):
    shown = (await told(router))["limits"][limit]
    assert shown["reserved"] == 0
    return shown["used"]


async def records(router):
    async with router.session.get(router.app.admin_url + "/admin/usage", headers=bearer(TOKEN)) as answer:
        return (await answer.json())["data"]


def error_of(text):
    """Of the stream's last event before [DONE]."""
    events = [line.removeprefix(b"data: ") for line in text.split(b"\n") if line.startswith(b"data: {")]
    return json.loads(events[-1]).get("error")


@pytest.mark.parametrize("replays", [True, False], ids=["our worker", "another's"])
async def test_a_stream_ends_with_the_quota_and_says_so(replays, serve, logged, until):
    router, _ = await serve(streaming(10_000, replays=replays), limits={"tokens_per_day": PROMPT + 100})

    status, text, _ = await ask(router)
    await until(lambda: all(endpoint.num_in_flight == 0 for endpoint in router.app._pool))
    after, _, _ = await ask(router)

    assert (status, error_of(text)["code"]) == (200, "insufficient_quota")
    assert "tokens a day (UTC) is used up" in error_of(text)["message"]
    assert text.endswith(b"data: [DONE]\n\n")
    assert text.count(b'"content"') == 101
    assert await used(router) == PROMPT + 101
    assert after == 429
    assert [(r["status"], r["output_tokens"] + r["prompt_tokens"]) for r in await records(router)] == [
        (200, await used(router))
    ]
    assert "is used up" in logged()


async def test_filters_pass_on_why_a_stream_ends(serve):
    rule = FilterEntry(name="w", stage="output", action="redact", words=["w7"], replacement="#")
    router, _ = await serve(streaming(10_000, replays=True), limits={"tokens_per_day": PROMPT + 100}, filters=[rule])

    _, text, _ = await ask(router)

    assert error_of(text)["code"] == "insufficient_quota"
    assert b"w99" in text
    assert b"w7 " not in text
    assert [r["status"] for r in await records(router)] == [200]


async def test_streams_at_the_same_time_share_what_is_left_and_overspend_by_their_last_parts_only(serve):
    limit = 5 * PROMPT + 300
    router, _ = await serve(streaming(400, replays=True), limits={"tokens_per_day": limit})

    found = await asyncio.gather(*(ask(router) for _ in range(5)))

    ends = [None if (error := error_of(text)) is None else error["code"] for _, text, _ in found]
    assert ends == ["insufficient_quota"] * 5
    assert limit <= await used(router) <= limit + 5


@pytest.mark.parametrize("replays", [True, False], ids=["our worker", "another's"])
@pytest.mark.parametrize("together", [7, 64, 400])
async def test_of_events_that_come_together_a_client_gets_and_pays_those_within_the_quota(together, replays, serve):
    router, _ = await serve(streaming(400, replays=replays, together=together), limits={"tokens_per_day": PROMPT + 100})

    _, text, _ = await ask(router)

    assert error_of(text)["code"] == "insufficient_quota"
    assert [f'"w{number} "'.encode() in text for number in range(110)] == [True] * 101 + [False] * 9
    assert await used(router) == PROMPT + 101


@pytest.mark.parametrize("replays", [True, False], ids=["our worker", "another's"])
@pytest.mark.parametrize("together", [7, 60, 64])
async def test_events_that_come_together_and_fit_are_all_given(together, replays, serve):
    number = 60 * together
    limit = PROMPT + number + (0 if replays else 2)  # of others every event is counted, the last two as well
    router, _ = await serve(streaming(number, replays=replays, together=together), limits={"tokens_per_day": limit})

    _, text, _ = await ask(router)

    assert error_of(text) is None
    assert [int(word) for word in re.findall(rb'"w(\d+) "', text)] == list(range(number))
    assert text.endswith(b"data: [DONE]\n\n")


async def test_an_answer_that_fits_exactly_ends_by_itself(serve):
    router, worker = await serve(streaming(60, replays=True), limits={"tokens_per_day": PROMPT + 60})

    status, text, _ = await ask(router)

    assert (status, error_of(text)) == (200, None)
    assert text.count(b'"content"') == 60
    assert b'"finish_reason": "stop"' in text
    assert await used(router) == PROMPT + 60
    assert worker.num_abandoned == 0


async def test_a_long_answer_within_the_quota_is_whole_and_settled_once(serve):
    router, _ = await serve(streaming(500, replays=True, at_once=5), limits={"tokens_per_day": 10_000})

    found = await asyncio.gather(*(ask(router) for _ in range(3)))

    assert [error_of(text) for _, text, _ in found] == [None] * 3
    assert await used(router) == 3 * (PROMPT + 500)


async def test_a_prepaid_stream_ends_with_the_balance(serve):
    price = PriceEntry(input="0", output="1000")
    router, _ = await serve(streaming(10_000, replays=True), price=price, billing="prepaid", credit="0.05")

    _, text, _ = await ask(router)
    shown = await told(router)

    assert "prepaid balance is used up" in error_of(text)["message"]
    assert -0.003 <= float(shown["balance"]) <= 0
    assert float(shown["spent"]) == pytest.approx(0.05, abs=0.003)


async def test_a_minutes_limit_ends_no_answer_but_counts_all_of_it(serve):
    router, _ = await serve(streaming(300, replays=True), limits={"tokens_per_minute": 100})

    _, text, _ = await ask(router)
    after, _, _ = await ask(router)

    assert error_of(text) is None
    assert (await used(router, "tokens"), after) == (PROMPT + 300, 429)


async def test_what_its_client_bounded_is_not_watched(serve):
    router, worker = await serve(streaming(20, replays=True), limits={"tokens_per_day": PROMPT + 20})

    status, text, _ = await ask(router, {**CHAT_BODY, "max_tokens": 20})

    assert (status, error_of(text), text.count(b'"content"')) == (200, None, 20)
    assert json.loads(worker.bodies[0])["max_tokens"] == 20


@pytest.mark.parametrize("answers", [2, 3])
async def test_readers_of_one_generation_are_not_held_to_what_only_its_owner_pays(answers, serve):
    router, worker = await serve(
        streaming(200, replays=True),
        limits={"tokens_per_day": answers * (PROMPT + PORTION) + 230},
        saving=SavingSettings(coalesce=True),
    )

    found = await asyncio.gather(*(ask(router) for _ in range(answers)))

    assert [error_of(text) for _, text, _ in found] == [None] * answers
    assert await used(router) == worker.num_calls * (PROMPT + 200)


def bundle_of(model_dir, length):
    return PromptBundle.from_model_dir(model_dir, block_size=16, max_model_len=length, served_model_names=["m"])


@pytest.mark.parametrize(
    ("path", "body", "field", "most"),
    [
        (CHAT, {"messages": MESSAGES}, "max_tokens", 100),
        (CHAT, {"messages": MESSAGES, "n": 3}, "max_tokens", 33),
        (CHAT, {"messages": MESSAGES, "max_tokens": None}, "max_tokens", 100),
        (RESPONSES, {"input": "hello " * 20}, "max_output_tokens", 100),
    ],
    ids=["chat", "three choices", "null", "responses"],
)
async def test_a_whole_answer_is_told_the_length_that_is_left(path, body, field, most, serve, model_dir, until):
    prompt = 24
    router, worker = await serve(whole, bundle=bundle_of(model_dir, 4096), limits={"tokens_per_day": prompt + 100})
    await until(lambda: all(e.max_model_len for e in router.app._pool))

    status, _, headers = await ask(router, {"model": "m", "user": "u", **body}, path)

    assert status == 200
    assert json.loads(worker.bodies[0])[field] == pytest.approx(most, abs=1)
    assert json.loads(worker.bodies[0])["user"] == "u"
    assert headers["x-quire-max-tokens"] == str(json.loads(worker.bodies[0])[field])


@pytest.mark.parametrize(("length", "limit"), [(4096, 5000), (100, 200), (None, 200)], ids=["far", "short", "unknown"])
async def test_where_the_model_cannot_write_so_much_its_worker_gets_the_clients_own_bytes(
    length, limit, serve, model_dir, until
):
    bundle = None if length is None else bundle_of(model_dir, length)
    router, worker = await serve(whole, bundle=bundle, limits={"tokens_per_day": limit})
    await until(lambda: length is None or all(e.max_model_len for e in router.app._pool))
    body = json.dumps({"model": "m", "messages": MESSAGES}, indent=1).encode()

    async with router.post(body, CHAT, headers=bearer("k")) as answer:
        await answer.read()

    assert (answer.status, worker.bodies) == (200, [body])
    assert "x-quire-max-tokens" not in answer.headers
