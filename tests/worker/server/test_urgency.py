"""Priority and time limits: from body, header and flags to the engine, and what a client is told when time is over."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from quire_contract import names
from quire_contract.openai.decode import decode_request
from quire_contract.openai.errors import ApiError
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import CompletionRequest
from quire_worker.server.urgency import Urgency, UrgencyRules

ENDLESS = {"model": "tiny", "prompt": "hello", "max_tokens": 1000, "ignore_eos": True}
SLOW = ("--served-model-name", "tiny", "--max-num-seqs", "1", "--fake-decode-s-per-step", "0.01")


def body(**fields: Any) -> CompletionRequest:
    return decode_request(CompletionRequest, json.dumps({"model": "m", "prompt": "x", **fields}).encode(), Limits())


@pytest.fixture(scope="module")
def slow(launch_in_module: Callable[..., Any]) -> Any:
    """One row, ten milliseconds a step, and little patience."""
    return launch_in_module(*SLOW, "--request-timeout", "5").wait_until_ready()


def test_without_limits_and_priorities_a_request_may_take_as_long_as_it_takes() -> None:
    assert UrgencyRules().decide(body(priority=0), {}, trusted=False) == Urgency()


def test_the_shortest_of_all_limits_counts() -> None:
    rules = UrgencyRules(timeout_s=60.0, queue_timeout_s=10.0)

    own = rules.decide(body(timeout_s=5, queue_timeout_s=20), {}, trusted=False)
    routed = rules.decide(body(timeout_s=5), {names.HEADER_DEADLINE: "2.5"}, trusted=True)

    assert own == Urgency(timeout_s=5.0, queue_timeout_s=10.0)
    assert routed == Urgency(timeout_s=2.5, queue_timeout_s=10.0)


def test_headers_of_those_who_are_no_router_mean_nothing() -> None:
    headers = {names.HEADER_DEADLINE: "nonsense", names.HEADER_PRIORITY: "-5"}

    assert UrgencyRules(takes_priority=True).decide(body(), headers, trusted=False) == Urgency()


def test_a_body_without_such_fields_has_the_servers_and_the_routers_limits() -> None:
    rules = UrgencyRules(takes_priority=True, timeout_s=9, queue_timeout_s=3)
    headers = {names.HEADER_PRIORITY: "2", names.HEADER_DEADLINE: "2.5"}

    assert rules.decide(None, {}, trusted=False) == Urgency(timeout_s=9, queue_timeout_s=3)
    assert rules.decide(None, headers, trusted=True) == Urgency(priority=2, timeout_s=2.5, queue_timeout_s=3)


def test_behind_a_router_a_body_can_only_lower_its_own_priority() -> None:
    rules = UrgencyRules(takes_priority=True)
    headers = {names.HEADER_PRIORITY: "3"}

    decided = [rules.decide(body(priority=p), headers, trusted=True).priority for p in (-100, 2, 50)]

    assert decided == [3, 3, 50]
    assert rules.decide(body(priority=-1), {}, trusted=True).priority == 0
    assert UrgencyRules().decide(body(priority=9), headers, trusted=True).priority == 0


@pytest.mark.parametrize("name", [names.HEADER_DEADLINE, names.HEADER_PRIORITY])
@pytest.mark.parametrize("value", ["", "soon", "1e5", "nan", "9" * 20, "-"])
def test_a_routers_header_that_is_no_number_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ApiError) as caught:
        UrgencyRules(takes_priority=True).decide(body(), {name: value}, trusted=True)

    assert (caught.value.status, caught.value.param) == (400, name)


async def test_a_priority_is_refused_with_the_flag_it_needs(http: aiohttp.ClientSession, worker: Any) -> None:
    request = {"model": "tiny", "prompt": "hello", "max_tokens": 2}

    refused = await http.post(f"{worker.base}/v1/completions", json={**request, "priority": 1})
    zero = await http.post(f"{worker.base}/v1/completions", json={**request, "priority": 0})

    error = (await refused.json())["error"]
    assert (refused.status, error["param"], zero.status) == (400, "priority", 200)
    assert "--scheduling-policy priority" in error["message"]


@pytest.mark.parametrize("policy", ["priority", "sjf"])
async def test_other_policies_serve_the_same_tokens(
    http: aiohttp.ClientSession, launch: Callable[..., Any], worker: Any, policy: str
) -> None:
    other = launch("--served-model-name", "tiny", "--seed", "7", "--scheduling-policy", policy).wait_until_ready()
    request = {"model": "tiny", "prompt": ["hello", "the fox"], "n": 2, "max_tokens": 20, "seed": 5, "temperature": 1}

    answers = []
    for base, extra in ((worker.base, {}), (other.base, {"priority": 7} if policy == "priority" else {})):
        async with http.post(f"{base}/v1/completions", json={**request, **extra}) as response:
            answers.append([choice["text"] for choice in (await response.json())["choices"]])

    assert answers[0] == answers[1]
    assert len(answers[0]) == 4


async def test_a_request_that_waits_too_long_is_503_and_may_come_again(
    http: aiohttp.ClientSession, launch: Callable[..., Any], metric: Any
) -> None:
    # A minute for the first one, which must itself be taken within the two seconds that the others wait in vain.
    flags = ("--served-model-name", "tiny", "--max-num-seqs", "1", "--fake-decode-s-per-step", "0.06")
    slow = launch(*flags, "--queue-timeout", "2").wait_until_ready()

    async with http.post(f"{slow.base}/v1/completions", json={**ENDLESS, "stream": True}) as first:
        await first.content.readline()
        refused = await http.post(f"{slow.base}/v1/completions", json=ENDLESS)
        streamed = await http.post(f"{slow.base}/v1/completions", json={**ENDLESS, "stream": True})

    for response in (refused, streamed):
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["type"]) == (503, "queue_timeout", "server_error")
        assert response.headers["x-quire-reason"] == "queue_timeout"
        assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert await metric(slow, "vllm:admission_rejections_total", reason="queue_timeout") == 2


async def test_a_running_request_ends_with_504_at_its_deadline_and_gives_its_blocks_back(
    http: aiohttp.ClientSession, slow: Any, metric: Any, eventually: Any
) -> None:
    before = await metric(slow, "quire_worker_deadlines_total")

    response = await http.post(f"{slow.base}/v1/completions", json={**ENDLESS, "timeout_s": 0.2})

    error = (await response.json())["error"]
    assert (response.status, error["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert await metric(slow, "quire_worker_deadlines_total") == before + 1
    await eventually(lambda: metric(slow, "vllm:num_requests_running"), 0)
    await eventually(lambda: metric(slow, "vllm:kv_cache_usage_perc"), 0)


async def test_a_stream_ends_with_an_error_event_at_its_deadline(http: aiohttp.ClientSession, slow: Any) -> None:
    async with http.post(f"{slow.base}/v1/completions", json={**ENDLESS, "stream": True, "timeout_s": 3.0}) as response:
        events = [line[6:].strip() async for line in response.content if line.startswith(b"data: ")]

    assert response.status == 200
    assert len(events) > 3
    assert json.loads(events[-2])["error"]["code"] == "deadline_exceeded"
    assert events[-1] == b"[DONE]"


async def test_the_servers_own_limit_needs_no_field(http: aiohttp.ClientSession, slow: Any) -> None:
    response = await http.post(f"{slow.base}/v1/completions", json=ENDLESS)

    assert response.status == 504


async def test_a_request_of_many_prompts_does_not_keep_others_waiting_until_its_end(
    http: aiohttp.ClientSession, launch: Callable[..., Any], eventually: Any, metric: Any
) -> None:
    flags = ("--served-model-name", "tiny", "--max-num-seqs", "4", "--fake-decode-s-per-step", "0.01")
    worker = launch(*flags).wait_until_ready()
    many = {"model": "tiny", "prompt": ["hello"] * 60, "max_tokens": 20, "ignore_eos": True}

    async def send(body: dict[str, Any]) -> dict[str, Any]:
        async with http.post(f"{worker.base}/v1/completions", json=body) as response:
            assert response.status == 200
            return dict(await response.json())

    batch = asyncio.create_task(send(many))
    await eventually(lambda: metric(worker, "vllm:num_requests_running"), 4)

    single = await send({**many, "prompt": "the fox", "max_tokens": 3})
    is_done_before = batch.done()

    assert len(single["choices"]) == 1
    assert not is_done_before
    assert len((await batch)["choices"]) == 60
