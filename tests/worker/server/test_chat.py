"""Chats through the openai SDK, against a worker process with a fake model."""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

MESSAGES: Any = [{"role": "user", "content": "the quick brown fox"}]
SEEDED: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "seed": 11}
IGNORE_EOS = {"ignore_eos": True}


async def collect(stream: Any) -> tuple[dict[int, str], dict[int, str], list[Any]]:
    """Text and finish reason by choice, and all chunks."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in reasons, "nothing follows a finish reason"
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, chunks


async def test_a_chat_has_text_finish_reason_and_usage(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**SEEDED, extra_body=IGNORE_EOS)

    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 40
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_adds_up_to_the_answer_in_one_go(client: openai.AsyncOpenAI, n: int) -> None:
    whole = await client.chat.completions.create(**SEEDED, n=n)
    texts, reasons, chunks = await collect(await client.chat.completions.create(**SEEDED, n=n, stream=True))

    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert all(chunk.usage is None for chunk in chunks)


async def test_each_choice_of_a_stream_opens_with_its_role(client: openai.AsyncOpenAI) -> None:
    _, _, chunks = await collect(await client.chat.completions.create(**SEEDED, n=2, stream=True))

    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert (own[0].delta.role, own[0].delta.content) == ("assistant", "")
        assert all(choice.delta.role is None for choice in own[1:])


async def test_usage_comes_in_a_last_chunk_without_choices(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True}

    _, _, chunks = await collect(
        await client.chat.completions.create(**SEEDED, stream=True, stream_options=options, extra_body=IGNORE_EOS)
    )

    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 40
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_continuous_usage_grows_with_every_chunk(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}

    _, _, chunks = await collect(
        await client.chat.completions.create(**SEEDED, stream=True, stream_options=options, extra_body=IGNORE_EOS)
    )

    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 40


async def test_choices_of_one_seed_differ_and_repeat(client: openai.AsyncOpenAI) -> None:
    first = await client.chat.completions.create(**SEEDED, n=4)
    second = await client.chat.completions.create(**SEEDED, n=4)

    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert [choice.message.content for choice in second.choices] == texts


async def test_greedy_choices_are_all_the_same_and_all_counted(client: openai.AsyncOpenAI) -> None:
    options = {**SEEDED, "temperature": 0, "n": 3, "extra_body": IGNORE_EOS}

    answer = await client.chat.completions.create(**options)
    texts, _, _ = await collect(await client.chat.completions.create(**options, stream=True))

    assert len({choice.message.content for choice in answer.choices}) == 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 120
    assert texts == {choice.index: choice.message.content for choice in answer.choices}


async def test_a_stop_string_ends_the_text_before_it_streamed_or_not(client: openai.AsyncOpenAI) -> None:
    full = (await client.chat.completions.create(**SEEDED, extra_body=IGNORE_EOS)).choices[0].message.content
    assert full is not None
    for start in range(2, len(full) - 4):
        stop = full[start : start + 3]
        expected = full[: full.index(stop)]

        whole = await client.chat.completions.create(**SEEDED, stop=stop, extra_body=IGNORE_EOS)
        texts, reasons, chunks = await collect(
            await client.chat.completions.create(**SEEDED, stop=stop, stream=True, extra_body=IGNORE_EOS)
        )

        assert whole.choices[0].message.content == expected
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].model_extra == {"stop_reason": stop}
        assert texts.get(0, "") == expected
        assert reasons == {0: "stop"}
        assert chunks[-1].choices[0].model_extra == {"stop_reason": stop}


async def test_a_stop_string_may_be_included(client: openai.AsyncOpenAI) -> None:
    full = (await client.chat.completions.create(**SEEDED, extra_body=IGNORE_EOS)).choices[0].message.content
    assert full is not None
    stop = full[6:9]
    body = {**IGNORE_EOS, "include_stop_str_in_output": True}

    answer = await client.chat.completions.create(**SEEDED, stop=stop, extra_body=body)

    assert answer.choices[0].message.content == full[: full.index(stop) + 3]


async def test_min_tokens_lets_an_early_stop_string_pass(client: openai.AsyncOpenAI) -> None:
    full = (await client.chat.completions.create(**SEEDED, extra_body=IGNORE_EOS)).choices[0].message.content
    assert full is not None

    answer = await client.chat.completions.create(**SEEDED, stop=full[1], extra_body={**IGNORE_EOS, "min_tokens": 40})

    assert answer.choices[0].message.content == full
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40


async def test_logprobs_are_one_entry_a_token_streamed_or_not(client: openai.AsyncOpenAI) -> None:
    options = {**SEEDED, "logprobs": True, "top_logprobs": 3, "extra_body": IGNORE_EOS}

    whole = await client.chat.completions.create(**options)
    stream = [chunk async for chunk in await client.chat.completions.create(**options, stream=True)]

    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    streamed = [
        entry
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content or []
    ]
    assert len(content) == 40
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in content]
    assert all(len(entry.top_logprobs) == 3 for entry in content)
    assert (
        bytes(byte for entry in content for byte in entry.bytes or []).decode("utf-8", "replace")
        == whole.choices[0].message.content
    )


async def test_logprobs_cut_by_a_stop_string_cover_only_the_text(client: openai.AsyncOpenAI) -> None:
    full = (await client.chat.completions.create(**SEEDED, extra_body=IGNORE_EOS)).choices[0].message.content
    assert full is not None
    stop = full[8:11]

    answer = await client.chat.completions.create(**SEEDED, stop=stop, logprobs=True, extra_body=IGNORE_EOS)

    content = answer.choices[0].message.content
    assert content is not None
    assert answer.choices[0].logprobs is not None
    tokens = [bytes(entry.bytes or []) for entry in answer.choices[0].logprobs.content or []]
    assert b"".join(tokens).decode("utf-8", "replace").startswith(content)
    assert len(b"".join(tokens[:-1]).decode("utf-8", "replace")) <= len(content)


async def test_a_repeated_prompt_is_found_in_the_prefix_cache(client: openai.AsyncOpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": "a prompt that no other test has, long enough for several blocks " * 4}
    ]
    options: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 2}

    first = await client.chat.completions.create(**options)
    second = await client.chat.completions.create(**options)

    assert first.usage is not None and first.usage.prompt_tokens_details is not None
    assert second.usage is not None and second.usage.prompt_tokens_details is not None
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == (second.usage.prompt_tokens - 1) // 16 * 16


async def test_without_max_tokens_a_chat_may_fill_the_model(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="alias", messages=MESSAGES, seed=3, extra_body=IGNORE_EOS)

    assert answer.model == "alias"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 2048


async def test_max_tokens_beyond_the_model_is_cut_to_what_fits(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=2048, seed=3, extra_body=IGNORE_EOS
    )

    assert answer.usage is not None
    assert answer.usage.total_tokens == 2048


async def test_the_clients_request_id_comes_back(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(**SEEDED, extra_headers={"X-Request-Id": "trace-42"})
    made = await client.chat.completions.with_raw_response.create(**SEEDED, extra_headers={"X-Request-Id": "bad id!"})

    assert raw.headers["x-request-id"] == "trace-42"
    assert made.headers["x-request-id"] not in ("", "bad id!")


async def test_two_bursts_of_a_hundred_streams_all_end_well(client: openai.AsyncOpenAI) -> None:
    async def one(index: int) -> tuple[str, str]:
        messages: Any = [{"role": "user", "content": f"number {index % 10}"}]
        options: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 24, "seed": index % 10}
        texts, reasons, _ = await collect(await client.chat.completions.create(**options, stream=True))
        return texts.get(0, ""), reasons[0]

    for _ in range(2):
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(one(index) for index in range(100)))

        assert all(answers[index] == answers[index % 10] for index in range(100))


async def test_a_stream_is_events_and_ends_with_done(http: aiohttp.ClientSession, worker: Any) -> None:
    async with http.post(f"{worker.base}/v1/chat/completions", json={**SEEDED, "stream": True}) as response:
        body = await response.read()

    events = body.decode().split("\n\n")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
