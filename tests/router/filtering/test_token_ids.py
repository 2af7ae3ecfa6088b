"""Prompts that come as token ids: what they say is filtered with the tokenizers of the models that may get them."""

import json

import msgspec
import pytest
from aiohttp import web
from client_server import DEMO

from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.router_config import EndpointEntry, ModelEntry, RouteEntry, RouterConfig, RouteTargetEntry
from quire_contract.router_settings import FilterEntry, ModerationHook, RouterSettingsEntry

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
BLOCK = FilterEntry(name="secret", stage="prompt", patterns=[r"(?i)project\s+zeus"])
REDACT = FilterEntry(name="mail", stage="prompt", action="redact", pii=["email"], replacement="somebody")
FLAG = FilterEntry(name="rude", stage="prompt", action="flag", words=["heck"])
SIZE = FilterEntry(name="size", stage="prompt", max_chars=10)


@pytest.fixture(scope="module")
def bundle() -> PromptBundle:
    return PromptBundle.from_model_dir(DEMO, block_size=16, max_model_len=512, served_model_names=["m"])


@pytest.fixture(scope="module")
def demo(bundle) -> PromptRenderer:
    return PromptRenderer(bundle)


async def answer(request, upstream):
    return web.json_response({"choices": [{"index": 0, "text": "ok", "finish_reason": "stop"}]})


def filtering(config, *filters):
    return msgspec.structs.replace(config, settings=RouterSettingsEntry(filters=list(filters)))


async def knowing(router, until, digest):
    """The router has the bundle of every ready worker."""
    await until(lambda: router.app._picker._reader.knows(digest))
    await until(lambda: all(e.digest == digest for e in router.app._pool if e.ready))


@pytest.fixture
def serve(start_upstream, start_router, make_config, until, bundle):
    """A worker that has told its tokenizer, behind these filters."""

    async def start(*filters):
        worker = await start_upstream("a", answer, bundle)
        router = await start_router(filtering(make_config(worker), *filters))
        await router.until_ready(1)
        await knowing(router, until, bundle.digest())
        return router, worker

    return start


async def ask(router, prompt, path=COMPLETIONS, **more):
    field = "prompt" if path == COMPLETIONS else "input"
    async with router.post({"model": "m", field: prompt, **more}, path) as got:
        return got.status, await got.json(), got.headers


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(("nested", "place"), [(False, ""), (True, "[1]")], ids=["one prompt", "several"])
async def test_ids_that_say_what_is_blocked_are_refused_as_their_text_would_be(path, nested, place, serve, demo):
    router, worker = await serve(BLOCK)
    good, bad = demo.completion("tell a story"), demo.completion("about Project  ZEUS and more")

    status, told, _ = await ask(router, [good, bad] if nested else bad, path)
    passed, _, _ = await ask(router, [good, good] if nested else good, path)

    assert (status, told["error"]["code"]) == (400, "content_filter")
    assert told["error"]["param"] == ("prompt" if path == COMPLETIONS else "input") + place
    assert (passed, worker.num_calls) == (200, 1)
    assert json.loads(worker.bodies[0])["prompt" if path == COMPLETIONS else "input"] == (
        [good, good] if nested else good
    )


async def test_however_a_word_is_cut_into_tokens_it_is_read_whole(serve, demo):
    router, worker = await serve(BLOCK)
    letters = [demo.completion(letter, add_special_tokens=False)[-1] for letter in "zeus"]
    prompt = demo.completion("project ", add_special_tokens=False) + letters

    status, told, _ = await ask(router, prompt)

    assert demo.decode(prompt, skip_special_tokens=False).endswith("zeus")
    assert (status, told["error"]["code"]) == (400, "content_filter")
    assert worker.num_calls == 0


async def test_what_is_redacted_reaches_the_worker_as_the_ids_of_the_other_text(serve, demo):
    router, worker = await serve(REDACT)
    prompts = [demo.completion("nothing here"), demo.completion("write to jane@example.org now")]

    status, _, _ = await ask(router, prompts, max_tokens=3)

    sent = json.loads(worker.bodies[0])
    assert status == 200
    assert sent["prompt"][0] == prompts[0]
    assert demo.decode(sent["prompt"][1]) == demo.decode(prompts[1]).replace("jane@example.org", "somebody")
    assert sent["max_tokens"] == 3


async def test_flags_and_sizes_hold_for_ids_too(serve, demo):
    router, worker = await serve(FLAG, SIZE)

    small, _, headers = await ask(router, demo.completion("heck"))
    large, told, _ = await ask(router, demo.completion("what the heck is this"))

    assert (small, headers["x-quire-flags"]) == (200, "rude")
    assert (large, told["error"]["code"]) == (400, "content_filter")
    assert worker.num_calls == 1


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([-1, 5], "prompt[0]"),
        ([5, 2**40], "prompt[1]"),
        ([5, 10**30], "prompt[1]"),
        ([[5], [2**31]], "prompt[1][0]"),
        ([5] * 513, "prompt"),
        ([True, 5], "prompt"),
        ([5, 1.0], "prompt"),
    ],
    ids=["negative", "large", "huge", "nested", "too many", "true", "a float"],
)
async def test_what_are_no_ids_of_the_model_is_refused_before_anybody_reads_it(prompt, param, serve):
    router, worker = await serve(BLOCK)

    status, told, _ = await ask(router, prompt)

    assert status == 400
    assert told["error"]["param"].startswith(param)
    assert worker.num_calls == 0


@pytest.mark.parametrize("prompt", [[5, 1.0], [True, 5], ["a", 5], [5, "a"]])
async def test_lists_of_several_kinds_are_refused_where_only_the_filters_look_at_them(prompt, serve):
    router, worker = await serve(BLOCK)

    status, told, _ = await ask(router, prompt, EMBEDDINGS)

    assert (status, told["error"]["param"][:6]) == (400, "input[")
    assert worker.num_calls == 0


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        (BLOCK, 400),
        (msgspec.structs.replace(BLOCK, on_unreadable="open"), 200),
        (REDACT, 400),
        (FLAG, 200),
        (FilterEntry(name="judge", stage="output", words=["heck"]), 200),
    ],
    ids=["block", "block, open", "redact", "flag", "output only"],
)
async def test_ids_for_a_worker_that_tells_no_tokenizer_pass_only_where_they_may(
    rule, status, start_upstream, start_router, make_config
):
    worker = await start_upstream("a", answer)
    router = await start_router(filtering(make_config(worker), rule))
    await router.until_ready(1)

    found, told, _ = await ask(router, [1, 2, 3])
    text, _, _ = await ask(router, "a text is read everywhere")

    assert (found, text) == (status, 200)
    if status == 400:
        assert (told["error"]["code"], told["error"]["param"]) == ("unreadable_prompt", "prompt")
        assert rule.name in told["error"]["message"]
    assert worker.num_calls == 1 + (status == 200)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("prompt_embeds", "AAAA", "unreadable_prompt"),
        ("input_embeds", [[0.5]], "unreadable_prompt"),
        ("prompt_embeds", None, None),
        ("prompt_token_ids", [1, 2], "unreadable_prompt"),
        ("input_ids", [[1], [2]], "unreadable_prompt"),
        ("chat_template", "about project zeus", "content_filter"),
        ("functions", [{"name": "f", "description": "project zeus"}], "content_filter"),
    ],
)
async def test_fields_that_only_other_vendors_workers_take_are_no_way_past_a_filter(
    field, value, code, start_upstream, start_router, make_config
):
    worker = await start_upstream("a", answer)
    router = await start_router(filtering(make_config(worker), BLOCK))
    await router.until_ready(1)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], field: value}

    async with router.post(body, "/v1/chat/completions") as got:
        told = await got.json()

    assert (got.status, told.get("error", {}).get("code")) == (200 if code is None else 400, code)
    assert worker.num_calls == (code is None)


async def test_a_moderator_is_asked_about_the_text_of_ids(serve, start_upstream, demo):
    asked = []

    async def judge(request, upstream):
        asked.append(json.loads(upstream.bodies[-1])["input"])
        return web.json_response({"action": "block"})

    moderator = await start_upstream("judge", judge)
    rule = FilterEntry(name="judge", stage="prompt", hook=ModerationHook(url=moderator.url + "/check"))
    router, worker = await serve(rule)

    status, told, _ = await ask(router, demo.completion("is this fine", add_special_tokens=False))

    assert (status, told["error"]["code"]) == (400, "content_filter")
    assert asked == [["is this fine"]]
    assert worker.num_calls == 0


async def test_ids_of_a_route_go_to_no_model_whose_tokenizer_has_not_read_them(
    start_upstream, start_router, until, bundle, demo
):
    async def fail(request, upstream):
        return web.json_response({"error": {"message": "no"}}, status=500)

    known, unknown = await start_upstream("a", fail, bundle), await start_upstream("b", answer)
    router = await start_router(
        RouterConfig(
            models=[ModelEntry(name="model-a"), ModelEntry(name="model-b")],
            endpoints=[EndpointEntry(id=u.id, url=u.url, models=[f"model-{u.id}"]) for u in (known, unknown)],
            routes=[
                RouteEntry(
                    model="m",
                    targets=[RouteTargetEntry(model="model-a")],
                    fallbacks=["model-b"],
                    fallback_on_error=True,
                )
            ],
            settings=RouterSettingsEntry(filters=[BLOCK]),
        )
    )
    await router.until_ready(2)
    await until(lambda: router.app._picker._reader.knows(bundle.digest()))

    ids, _, _ = await ask(router, demo.completion("fine"))
    text, _, _ = await ask(router, "fine")

    assert (ids, text) == (500, 200)
    assert (known.num_calls, unknown.num_calls) == (2, 1)
