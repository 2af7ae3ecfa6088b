"""The router between real sockets: prompts and answers of all four APIs, filtered; workers' answers are scripted."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_contract.router_config import RouterConfigError, write_config
from quire_contract.router_settings import FilterEntry, ModerationHook, RouterSettingsEntry
from quire_router.call import Outcome
from quire_router.filtering.bodies import texts_of
from quire_router.filtering.channels import Asked, Channels, events_of
from quire_router.filtering.chat_stream import ChatStream
from quire_router.filtering.messages_stream import MessagesStream
from quire_router.filtering.prompts import filter_prompt
from quire_router.filtering.responses_stream import ResponsesStream
from quire_router.filtering.rules import FilterSet
from quire_router.filtering.text_filter import TextFilter

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
REDACT = FilterEntry(name="mail", action="redact", pii=["email"])
BLOCK = FilterEntry(name="secret", action="block", patterns=[r"(?i)project\s+zeus"])
FLAG = FilterEntry(name="rude", action="flag", words=["heck"])
QUESTION = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, COMPLETIONS: {"prompt": "hi"}, RESPONSES: {"input": "hi"},
            MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}}  # fmt: skip


def filtering(config: Any, *filters: FilterEntry) -> Any:
    return msgspec.structs.replace(config, settings=RouterSettingsEntry(filters=list(filters)))


def body_of(path: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", **QUESTION[path], **more}


def sse(*events: dict[str, Any], named: bool = False, done: bool = False) -> list[bytes]:
    head = [b"event: %s\n" % event["type"].encode() if named else b"" for event in events]
    made = [first + b"data: " + json.dumps(event).encode() + b"\n\n" for first, event in zip(head, events, strict=True)]
    return [*made, b"data: [DONE]\n\n"] if done else made


def stream_of(path: str, pieces: list[str]) -> list[bytes]:
    """A worker's stream of this text."""
    if path == CHAT:
        choices = [
            {"delta": {"role": "assistant", "content": ""}},
            *({"delta": {"content": piece}} for piece in pieces),
        ]
        choices.append({"delta": {}, "finish_reason": "stop"})
        return sse(
            *({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, **c}]} for c in choices),
            done=True,
        )
    if path == COMPLETIONS:
        choices = [*({"text": piece} for piece in pieces), {"text": "", "finish_reason": "stop"}]
        return sse(
            *({"id": "c", "object": "text_completion", "choices": [{"index": 0, **c}]} for c in choices), done=True
        )
    if path == MESSAGES:
        blocks = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ]
        return sse(
            {
                "type": "message_start",
                "message": {"id": "m", "content": [], "usage": {"input_tokens": 3, "output_tokens": 0}},
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *blocks,
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 9},
            },
            {"type": "message_stop"},
            named=True,
        )
    text, place = "".join(pieces), {"item_id": "i", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "i", "role": "assistant", "status": "completed", "content": [part]}
    response = {"id": "r", "object": "response", "status": "in_progress", "output": []}
    events = [
        {"type": "response.created", "response": response},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "content": [], "status": "in_progress"},
        },
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        *(
            {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": [{"token": piece}]}
            for piece in pieces
        ),
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {**response, "status": "completed", "output": [item]}},
    ]
    return sse(*({**event, "sequence_number": i} for i, event in enumerate(events)), named=True)


def whole_of(path: str, text: str) -> dict[str, Any]:
    if path == CHAT:
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    if path == COMPLETIONS:
        return {"choices": [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": {"tokens": [text]}}]}
    if path == MESSAGES:
        return {"type": "message", "content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}
    return {
        "status": "completed",
        "incomplete_details": None,
        "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}],
    }


def answering(answers: dict[str, Any], pieces: list[str], *, endless: bool = False) -> Any:
    """Streams or gives whole what the worker says; an endless one waits for its client to leave."""

    async def behave(request: web.BaseRequest, upstream: Any) -> web.StreamResponse:
        if not json.loads(upstream.bodies[-1]).get("stream"):
            return web.json_response(whole_of(request.path, "".join(pieces)))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = answers.get(request.path) or stream_of(request.path, pieces)
        for event in events[: -3 if endless else None]:
            await response.write(event)
            await asyncio.sleep(0)
        if endless:
            await asyncio.Event().wait()
        return response

    return behave


def said(path: str, raw: bytes) -> tuple[str, str | None, list[dict[str, Any]]]:
    """The text of a stream, why it ended, and its events."""
    events = [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: {")]
    if path in (CHAT, COMPLETIONS):
        choices = [choice for event in events for choice in event["choices"]]
        text = "".join(c["delta"].get("content") or "" if "delta" in c else c["text"] for c in choices)
        return text, next((c["finish_reason"] for c in choices if c.get("finish_reason")), None), events
    if path == MESSAGES:
        text = "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
        return text, next((e["delta"]["stop_reason"] for e in events if e["type"] == "message_delta"), None), events
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    last = events[-1]["response"]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert text == "".join(part["text"] for item in last["output"] for part in item["content"])
    return text, (last.get("incomplete_details") or {}).get("reason", "stop"), events


PATHS = pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])


@PATHS
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_redacted_in_an_answer_is_so_however_it_is_cut(
    path, stream, start_upstream, start_router, make_config
) -> None:
    upstream = await start_upstream("a", answering({}, [*list("write to jane@exam"), "ple.org or ", "not."]))
    router = await start_router(filtering(make_config(upstream), REDACT))
    await router.until_ready(1)

    async with router.post(body_of(path, stream=stream), path) as response:
        raw = await response.read()

    if stream:
        text, reason, _ = said(path, raw)
        assert (text, reason) == ("write to [redacted] or not.", {MESSAGES: "end_turn"}.get(path, "stop"))
        assert raw.rstrip().endswith(b"[DONE]") == (path in (CHAT, COMPLETIONS))
    else:
        assert b"write to [redacted] or not." in raw
    assert b"jane" not in raw
    assert b'"token' not in raw


@PATHS
async def test_a_blocked_stream_ends_before_the_match_and_frees_the_worker(
    path, start_upstream, start_router, make_config
) -> None:
    upstream = await start_upstream(
        "a", answering({}, ["about pro", "ject ", " ZEU", "S: it is big", " and more"], endless=True)
    )
    router = await start_router(filtering(make_config(upstream), BLOCK))
    await router.until_ready(1)

    async with router.post(body_of(path, stream=True), path) as response:
        raw = await response.read()

    assert said(path, raw)[:2] == ("about ", "refusal" if path == MESSAGES else "content_filter")
    assert b"zeus" not in raw.lower()
    assert b"about pro" not in raw
    async with asyncio.timeout(60):
        await upstream.abandoned.wait()


@PATHS
async def test_a_blocked_whole_answer_says_so(path, start_upstream, start_router, make_config) -> None:
    upstream = await start_upstream("a", answering({}, ["about project zeus: it is big"]))
    router = await start_router(filtering(make_config(upstream), BLOCK))
    await router.until_ready(1)

    async with router.post(body_of(path), path) as response:
        answer = await response.json()

    assert "zeus" not in json.dumps(answer)
    if path == MESSAGES:
        assert (answer["stop_reason"], answer["content"][0]["text"]) == ("refusal", "about ")
    elif path == RESPONSES:
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    else:
        assert answer["choices"][0]["finish_reason"] == "content_filter"


async def test_one_blocked_choice_does_not_end_the_others(start_upstream, start_router, make_config) -> None:
    texts = [(0, "fine "), (1, "project "), (0, "still "), (1, "zeus!"), (1, "more"), (0, "fine")]
    chunks = [{"choices": [{"index": i, "delta": {"content": text}}]} for i, text in texts]
    chunks.append({"choices": [{"index": i, "delta": {}, "finish_reason": "stop"} for i in (0, 1)]})
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}}
    upstream = await start_upstream("a", answering({CHAT: sse(*chunks, usage, done=True)}, []))
    router = await start_router(filtering(make_config(upstream), BLOCK))
    await router.until_ready(1)

    async with router.post(body_of(CHAT, stream=True, n=2), CHAT) as response:
        raw = await response.read()

    choices = [choice for event in said(CHAT, raw)[2] for choice in event["choices"]]
    of = {i: [c for c in choices if c["index"] == i] for i in (0, 1)}
    assert ["".join(c["delta"].get("content") or "" for c in of[i]) for i in (0, 1)] == ["fine still fine", ""]
    assert [[c["finish_reason"] for c in of[i] if c.get("finish_reason")] for i in (0, 1)] == [
        ["stop"],
        ["content_filter"],
    ]
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_arguments_of_calls_and_reasoning_are_filtered_and_stay_what_they_are(
    start_upstream, start_router, make_config
) -> None:
    deltas = [{"reasoning_content": "mail jane@x"}, {"reasoning_content": ".org"}, {"content": "ok"}]
    deltas.append(
        {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "send", "arguments": ""}}]}
    )
    deltas += [
        {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        for piece in ('{"to": "jane@', 'x.org", "n": 1}')
    ]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    upstream = await start_upstream("a", answering({CHAT: sse(*chunks, done=True)}, []))
    router = await start_router(filtering(make_config(upstream), msgspec.structs.replace(REDACT, replacement='"R"')))
    await router.until_ready(1)

    async with router.post(body_of(CHAT, stream=True), CHAT) as response:
        events = said(CHAT, await response.read())[2]

    seen = [event["choices"][0]["delta"] for event in events]
    arguments = "".join(call["function"].get("arguments", "") for d in seen for call in d.get("tool_calls", ()))
    assert json.loads(arguments) == {"to": '"R"', "n": 1}
    assert "".join(d.get("reasoning_content", "") for d in seen) == 'mail "R"'
    assert [i for i, d in enumerate(seen) if d.get("content")] >= [
        i for i, d in enumerate(seen) if d.get("reasoning_content")
    ][-1:]


def talk(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, *messages], **more}


CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": r'{"a": "proj\u0065ct zeus"}'}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"type": "project zeus"}}
RESULT = {"type": "tool_result", "tool_use_id": "t"}
TOLD = {"type": "text", "text": "project zeus"}
OUTPUT = {"type": "function_call_output", "call_id": "t", "output": "project zeus"}
PROMPTS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, talk({"role": "user", "content": [TOLD]}), "messages[1].content[0].text"),
    (
        CHAT,
        talk({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "t", "content": "x"}),
        "messages[1].tool_calls[0].function.arguments",
    ),
    (COMPLETIONS, {"prompt": ["x", "project zeus"]}, "prompt[1]"),
    (RESPONSES, {"instructions": "project zeus", "input": "x"}, "instructions"),
    (RESPONSES, {"input": [OUTPUT]}, "input[0].output"),
    (MESSAGES, talk(system=[TOLD], max_tokens=1), "system[0].text"),
    (
        MESSAGES,
        talk({"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}, max_tokens=1),
        "messages[1].content[0].input.type",
    ),
    ("/v1/embeddings", {"input": ["x", "project zeus"]}, "input[1]"),
    ("/v1/rerank", {"query": "x", "documents": ["x", {"text": "project zeus"}]}, "documents[1].text"),
]


@pytest.mark.parametrize(("path", "question", "place"), PROMPTS)
async def test_a_blocked_prompt_is_refused_with_its_place_and_without_what_was_found(
    path, question, place, start_upstream, start_router, make_config, logged
) -> None:
    upstream = await start_upstream("a", answering({}, ["never"]))
    router = await start_router(filtering(make_config(upstream), BLOCK))
    await router.until_ready(1)

    async with router.post({"model": "m", **question}, path) as response:
        raw, answer = await response.read(), await response.json()
    async with router.get("/metrics") as response:
        metrics = await response.text()

    assert response.status == 200
    assert place in answer["error"]["message"]
    if path != MESSAGES:
        assert (answer["error"]["code"], answer["error"]["param"]) == ("content_filter", place)
    assert b"zeus" not in raw
    assert "zeus" not in logged()
    assert upstream.num_calls == 0
    assert 'quire_router_filter_total{action="block",filter="secret",stage="prompt"} 1.0' in metrics


async def test_a_redacted_prompt_reaches_the_worker_otherwise_as_it_was_written(
    start_upstream, start_router, make_config
) -> None:
    upstream = await start_upstream("a", answering({}, ["ok"]))
    router = await start_router(filtering(make_config(upstream), REDACT))
    await router.until_ready(1)
    other = b'{"role":"user", "content":"\\u00e9 2"}'
    body = (
        b'{"model":"m", "seed":  12345678901234567, "messages":[{"content":"a@b.org","role":"user","x":1.50}, %s]}'
        % other
    )

    async with router.post(body, CHAT) as response:
        status = response.status

    assert status == 200
    changed = b'{"content":"[redacted]","role":"user","x":1.50}'
    assert upstream.bodies[-1] == b'{"model":"m","seed":12345678901234567,"messages":[%s,%s]}' % (changed, other)


async def test_a_prompt_of_four_mebibytes_is_filtered_beside_the_event_loop(
    start_upstream, start_router, make_config
) -> None:
    upstream = await start_upstream("a", answering({}, ["ok"]))
    router = await start_router(filtering(make_config(upstream), REDACT, BLOCK, FLAG))
    await router.until_ready(1)
    prompt = "word and a@b.org " * 200_000

    async with router.post(json.dumps(body_of(COMPLETIONS, prompt=prompt)).encode(), COMPLETIONS) as response:
        status = response.status

    assert status == 200
    assert json.loads(upstream.bodies[-1])["prompt"] == prompt.replace("a@b.org", "[redacted]")


async def test_flags_change_nothing_and_are_told_in_a_header_and_counted(
    start_upstream, start_router, make_config
) -> None:
    size = FilterEntry(name="long", stage="prompt", action="flag", max_chars=5)
    upstream = await start_upstream("a", answering({}, ["what the he", "ck"]))
    router = await start_router(filtering(make_config(upstream), FLAG, size))
    await router.until_ready(1)

    async with router.post(body_of(COMPLETIONS, prompt="oh heck"), COMPLETIONS) as response:
        flags, answer = response.headers["x-quire-flags"], await response.json()
    async with router.post(body_of(CHAT, stream=True), CHAT) as response:
        text = said(CHAT, await response.read())[0]
    async with router.get("/metrics") as response:
        metrics = await response.text()

    assert sorted(flags.split(",")) == ["long", "rude"]
    assert answer["choices"][0]["text"] == text == "what the heck"
    assert json.loads(upstream.bodies[0])["prompt"] == "oh heck"
    assert 'quire_router_filter_total{action="flag",filter="rude",stage="output"} 2.0' in metrics


async def test_a_filter_for_another_model_or_tenant_leaves_bytes_alone(
    start_upstream, start_router, make_config
) -> None:
    events = [b'data: {"choices":[{"index":0, "delta":{"content":"a@b.org"}}]}\n\n', b"data: [DONE]\n\n"]
    upstream = await start_upstream("a", answering({CHAT: events}, []))
    config = filtering(make_config(upstream), msgspec.structs.replace(REDACT, models=["other"]))
    router = await start_router(config)
    await router.until_ready(1)

    async with router.post(body_of(CHAT, stream=True), CHAT) as response:
        raw = await response.read()

    assert raw == b"".join(events)


async def test_filters_that_cannot_be_compiled_leave_the_last_good_configuration_in_force(
    start_upstream, start_router, make_config, until, logged
) -> None:
    upstream = await start_upstream("a", answering({}, ["ok a@b.org"]))
    router = await start_router(filtering(make_config(upstream), REDACT))
    await router.until_ready(1)

    wrong = filtering(make_config(upstream), msgspec.structs.replace(BLOCK, patterns=["fine", "(?=x)y"]))
    write_config(router.config_path, wrong)
    await until(lambda: "configuration_refused" in logged())

    assert "settings.filters[0].patterns[1]" in logged()
    async with router.post(body_of(COMPLETIONS), COMPLETIONS) as response:
        assert (await response.json())["choices"][0]["text"] == "ok [redacted]"


@pytest.mark.parametrize(
    ("patterns", "problem"), [(["a(?!b)"], r"patterns\[0\]: RE2 refuses"), (["x", "a*"], r"patterns\[1\].*empty text")]
)
async def test_a_router_does_not_start_with_filters_that_cannot_be_compiled(
    patterns, problem, start_upstream, start_router, make_config
) -> None:
    upstream = await start_upstream("a")

    with pytest.raises(RouterConfigError, match=problem):
        await start_router(filtering(make_config(upstream), msgspec.structs.replace(BLOCK, patterns=patterns)))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES]),
    st.lists(
        st.sampled_from(
            ["a@b.org", " to ", "a", "@", "b", ".or", "g ", "project", " \n", "zeus", "heck", "é", "x " * 20]
        ),
        min_size=1,
    ),
    st.lists(st.integers(0, 3), min_size=80, max_size=80),
)
def test_a_stream_says_what_filtering_its_whole_text_gives(path: str, pieces: list[str], sizes: list[int]) -> None:
    rules = FilterSet([REDACT, BLOCK, FLAG]).applying("output", "m", None).rules
    stream = stream_for(path, Channels(rules, lambda rule: None, is_json=False))
    events = stream_of(path, pieces)
    whole = TextFilter(rules, lambda rule: None)

    raw = b""
    for size in [*sizes, len(events)]:
        part, events = b"".join(events[:size]), events[size:]
        if not stream.is_over:
            raw += b"".join(piece.data for event in events_of(part) for piece in stream.take(event))

    text, reason, _ = said(path, raw + b"".join(piece.data for piece in (stream.end() if stream.is_over else [])))
    assert text == whole.whole("".join(pieces))
    assert (reason in ("content_filter", "refusal")) == (whole.blocked_by is not None)


def stream_for(path: str, channels: Channels) -> Any:
    outcome = Outcome()
    if path == RESPONSES:
        return ResponsesStream(channels, outcome)
    if path == MESSAGES:
        return MessagesStream(channels, outcome)
    return ChatStream(channels, Asked(num_choices=1, include_usage=False, is_json=False), outcome)


class Moderator:
    """A moderator on loopback that finds "evil"."""

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.broken = False

    async def behave(self, request: web.BaseRequest, upstream: Any) -> web.StreamResponse:
        question = json.loads(upstream.bodies[-1])
        self.questions.append(question)
        if self.broken:
            return web.Response(status=302, headers={"Location": "/elsewhere"})
        return web.json_response({"action": "block" if "evil" in " ".join(question["input"]) else "allow"})


@PATHS
@pytest.mark.parametrize("stream", [True, False])
async def test_an_outside_moderator_sees_all_of_an_answer_before_its_client(
    path, stream, start_upstream, start_router, make_config
) -> None:
    moderator = Moderator()
    judge = await start_upstream("judge", moderator.behave)
    upstream = await start_upstream("a", answering({}, ["good " * 30, "ev", "il things", " more"]))
    hook = ModerationHook(url=judge.url + "/check", check_chars=120)
    router = await start_router(filtering(make_config(upstream), FilterEntry(name="judge", stage="output", hook=hook)))
    await router.until_ready(1)

    async with router.post(body_of(path, stream=stream), path) as response:
        raw = await response.read()

    assert b"evil" not in raw
    assert b"things" not in raw
    assert b"refusal" in raw if path == MESSAGES else b"content_filter" in raw
    assert moderator.questions[0]["stage"] == "output"
    assert moderator.questions[0]["model"] == "m"
    assert (b"good good" in raw) == stream


async def test_a_dead_moderator_is_soon_not_waited_for_any_more(start_upstream, start_router, make_config) -> None:
    moderator = Moderator()
    moderator.broken = True
    judge = await start_upstream("judge", moderator.behave)
    upstream = await start_upstream("a", answering({}, ["ok"]))
    strict = FilterEntry(name="strict", stage="prompt", hook=ModerationHook(url=judge.url), models=["m"])
    router = await start_router(filtering(make_config(upstream), strict))
    await router.until_ready(1)

    statuses = []
    for _ in range(8):
        async with router.post(body_of(COMPLETIONS), COMPLETIONS) as response:
            statuses.append((response.status, (await response.json())["error"]["code"]))

    assert set(statuses) == {(503, "moderation_unavailable")}
    assert len(moderator.questions) == 3
    assert upstream.num_calls == 0


async def test_a_moderator_that_may_fail_lets_requests_pass(start_upstream, start_router, make_config) -> None:
    upstream = await start_upstream("a", answering({}, ["ok"]))
    hook = ModerationHook(url="http://127.0.0.1:9/none", on_failure="open")
    router = await start_router(filtering(make_config(upstream), FilterEntry(name="lax", hook=hook)))
    await router.until_ready(1)

    async with router.post(body_of(COMPLETIONS), COMPLETIONS) as response:
        answer = await response.json()

    assert answer["choices"][0]["text"] == "ok"


@pytest.mark.parametrize(
    "data", [b"[1]", b"{not json", b'{"choices": [{"delta": {"content": "a@b.org"}}]}', b'{"choices": [7]}']
)
async def test_an_event_that_cannot_be_filtered_does_not_pass(data, start_upstream, start_router, make_config) -> None:
    events = [b"data: " + data + b"\n\n", b"data: [DONE]\n\n"]
    upstream = await start_upstream("a", answering({CHAT: events}, []))
    router = await start_router(filtering(make_config(upstream), REDACT))
    await router.until_ready(1)

    async with router.post(body_of(CHAT, stream=True), CHAT) as response:
        raw = await response.read()

    assert b"stream_broken" in raw
    assert data not in raw


async def test_fields_that_only_look_like_those_of_another_api_do_no_harm(
    start_upstream, start_router, make_config
) -> None:
    upstream = await start_upstream("a", answering({}, ["ok a@b.org"]))
    router = await start_router(filtering(make_config(upstream), REDACT))
    await router.until_ready(1)

    async with router.post(body_of(CHAT, text="x", output_config=1, stream_options=[]), CHAT) as response:
        answer = await response.json()

    assert answer["choices"][0]["message"]["content"] == "ok [redacted]"


async def test_the_log_probabilities_and_ids_of_what_is_hidden_are_hidden(
    start_upstream, start_router, make_config
) -> None:
    entry = {"content": [{"token": "jane@x.org", "logprob": -1}]}
    chunk = {"choices": [{"index": 0, "delta": {"content": "jane@x.org "}, "logprobs": entry, "token_ids": [5, 6]}]}
    upstream = await start_upstream("a", answering({CHAT: sse(chunk, done=True)}, []))
    router = await start_router(filtering(make_config(upstream), REDACT))
    await router.until_ready(1)

    async with router.post(body_of(CHAT, stream=True, logprobs=True), CHAT) as response:
        event = said(CHAT, await response.read())[2][0]

    assert event["choices"] == [{"index": 0, "delta": {"content": "[redacted] "}, "logprobs": None}]


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"chat_template_kwargs": {"date_string": "a@b.example"}}, "chat_template_kwargs.date_string"),
        ({"tools": [{"type": "function", "function": {"parameters": {"type": "a@b.example"}}}]}, "tools[0].function.parameters.type"),
        ({"tools": [{"function": {"parameters": {"enum": [4111111111111111]}}}]}, "tools[0].function.parameters.enum[0]"),
    ],
    ids=["template", "type", "number"],
)  # fmt: skip
def test_whatever_a_template_may_write_into_the_prompt_is_looked_at(more, place):
    rules = FilterSet([FilterEntry(name="pii", action="block", pii=["email", "credit_card"])])

    filtered = filter_prompt(json.dumps(body_of(CHAT, **more)).encode(), rules.applying("prompt", "m", None))

    assert [(hit.name, hit.action, hit.place) for hit in filtered.hits] == [("pii", "block", place)]


def test_types_of_a_schema_are_no_texts_and_token_ids_none_before_somebody_reads_them():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    bodies = [body_of(CHAT, tools=tools), body_of(COMPLETIONS, prompt=[[1, 2], [3]])]

    texts = [[(place.text, place.ids) for place in texts_of(json.dumps(body).encode())] for body in bodies]

    assert texts == [[("hi", None), ("f", None)], [("", [1, 2]), ("", [3])]]


async def test_a_short_prompt_does_not_wait_behind_long_ones(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(filtering(make_config(worker), REDACT))
    await router.until_ready(1)
    finished: list[str] = []

    async def ask(name: str, text: str) -> None:
        async with router.post(body_of(CHAT, messages=[{"role": "user", "content": text}]), CHAT) as answer:
            await answer.read()
        finished.append(name)

    long = [asyncio.create_task(ask("long", "a@b.example " * 30_000)) for _ in range(4)]
    await asyncio.sleep(0)
    await ask("short", "a@b.example " * 600)
    before = list(finished)
    await asyncio.gather(*long)

    assert len(before) < 3
    assert sorted(finished) == ["long"] * 4 + ["short"]
