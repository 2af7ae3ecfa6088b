"""An outside moderator: what it is told, what its answers mean, and what a shard with wrong filters does."""

import json
import os
from typing import Any

import msgspec
import pytest
from aiohttp import web

from quire_contract.router_config import ModelEntry, RouterConfig, encode_config
from quire_contract.router_settings import FilterEntry, ModerationHook, RouterSettingsEntry
from quire_router.filtering.rules import FilterCompiler
from quire_router.kube_source import Shards

CHAT = "/v1/chat/completions"


def with_filters(config: RouterConfig, *filters: FilterEntry) -> RouterConfig:
    return msgspec.structs.replace(config, settings=RouterSettingsEntry(filters=list(filters)))


def judging(answer: Any, status: int = 200) -> Any:
    async def behave(request: web.BaseRequest, upstream: Any) -> web.StreamResponse:
        return web.Response(status=status, body=answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    return behave


async def say(request: web.BaseRequest, upstream: Any) -> web.StreamResponse:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": f"answer {i}"}, "finish_reason": "stop"}
        for i in (0, 1)
    ]
    return web.json_response({"choices": choices})


def question(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "mail a@b.org"}], **more}


async def test_a_moderator_is_told_who_asks_what_with_redactions_made(
    start_upstream, start_router, make_config
) -> None:
    judge = await start_upstream("judge", judging({"action": "allow"}))
    upstream = await start_upstream("a", say)
    mail = FilterEntry(name="mail", action="redact", pii=["email"])
    hook = FilterEntry(name="judge", stage="prompt", hook=ModerationHook(url=judge.url + "/x", header_env="HOME"))
    router = await start_router(with_filters(make_config(upstream), mail, hook))
    await router.until_ready(1)

    async with router.post(question(), CHAT, headers={"x-request-id": "req-1"}) as response:
        status = response.status

    assert status == 200
    told = {"stage": "prompt", "model": "m", "tenant": None, "request_id": "req-1", "input": ["mail [redacted]"]}
    assert json.loads(judge.bodies[0]) == told
    assert judge.headers[0]["Authorization"] == os.environ["HOME"]


@pytest.mark.parametrize(
    ("answer", "action", "status", "flags"),
    [
        ({"action": "block"}, "block", 400, None),
        ({"action": "block"}, "flag", 200, "judge"),
        ({"action": "flag", "categories": ["x"]}, "block", 200, "judge"),
        ({"id": "modr-1", "results": [{"flagged": True, "categories": {}}]}, "block", 400, None),
        ({"results": [{"flagged": False}]}, "block", 200, None),
        ({"action": "perhaps"}, "block", 503, None),
        ({"action": "perhaps"}, "flag", 200, None),
        ({}, "block", 503, None),
        (b" " * 70_000 + b"{}", "block", 503, None),
    ],
)
async def test_what_a_moderator_says_of_a_prompt_is_done(
    answer, action, status, flags, start_upstream, start_router, make_config
) -> None:
    judge = await start_upstream("judge", judging(answer))
    upstream = await start_upstream("a", say)
    entry = FilterEntry(name="judge", stage="prompt", action=action, hook=ModerationHook(url=judge.url))
    router = await start_router(with_filters(make_config(upstream), entry))
    await router.until_ready(1)

    async with router.post(question(), CHAT) as response:
        seen = (response.status, response.headers.get("x-quire-flags"))

    assert seen == (status, flags)
    assert upstream.num_calls == (status == 200)


async def test_one_choice_that_a_moderator_refuses_leaves_the_others(start_upstream, start_router, make_config) -> None:
    async def behave(request: web.BaseRequest, upstream: Any) -> web.StreamResponse:
        refused = "answer 1" in json.loads(upstream.bodies[-1])["input"]
        return web.json_response({"action": "block" if refused else "allow"})

    judge = await start_upstream("judge", behave)
    upstream = await start_upstream("a", say)
    entry = FilterEntry(name="judge", stage="output", hook=ModerationHook(url=judge.url))
    router = await start_router(with_filters(make_config(upstream), entry))
    await router.until_ready(1)

    async with router.post(question(n=2), CHAT) as response:
        choices = (await response.json())["choices"]

    assert [(c["message"]["content"], c["finish_reason"]) for c in choices] == [
        ("answer 0", "stop"),
        ("", "content_filter"),
    ]


def test_a_shard_with_filters_that_cannot_be_compiled_keeps_its_last_good_content() -> None:
    shards = Shards(FilterCompiler().check)
    plain = RouterConfig(models=[ModelEntry(name="m")], endpoints=[])
    good = with_filters(plain, FilterEntry(name="f", patterns=["x+"]))
    wrong = with_filters(plain, FilterEntry(name="f", patterns=["(x"]))

    for config in (good, wrong):
        meta = {"namespace": "home", "name": "r-router-config-0"}
        shards.change("MODIFIED", {"metadata": meta, "data": {"router.json": encode_config(config).decode()}})

    assert shards.ordered == [good]
