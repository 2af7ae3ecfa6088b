"""Completions through the openai SDK: every form of prompt, choices, legacy log-probabilities."""

from typing import Any

import openai
import pytest

SEEDED: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "seed": 5, "extra_body": {"ignore_eos": True}}
TEXT = "the quick brown fox"


async def tokens_of(client: openai.AsyncOpenAI, text: str) -> list[int]:
    answer = await client.post("/../tokenize", cast_to=dict[str, Any], body={"model": "tiny", "prompt": text})
    ids = answer["tokens"]
    assert isinstance(ids, list)
    return ids


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> tuple[dict[int, str], list[Any]]:
    texts: dict[int, str] = {}
    chunks = [chunk async for chunk in await client.completions.create(**options, stream=True)]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts, chunks


async def test_text_and_its_token_ids_give_the_same(client: openai.AsyncOpenAI) -> None:
    ids = await tokens_of(client, TEXT)

    by_text = await client.completions.create(prompt=TEXT, **SEEDED)
    by_ids = await client.completions.create(prompt=ids, **SEEDED)

    assert by_text.id.startswith("cmpl-")
    assert by_text.choices[0].text == by_ids.choices[0].text != ""
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == len(ids)


async def test_choice_j_of_prompt_i_has_index_i_times_n_plus_j(client: openai.AsyncOpenAI) -> None:
    prompts = ["one", "two words", "three of them"]
    singles = [await client.completions.create(prompt=prompt, n=2, **SEEDED) for prompt in prompts]

    together = await client.completions.create(prompt=prompts, n=2, **SEEDED)
    texts, _ = await streamed(client, prompt=prompts, n=2, **SEEDED)

    expected = [choice.text for answer in singles for choice in answer.choices]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text for choice in together.choices] == expected
    assert [texts[index] for index in range(6)] == expected
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in singles if answer.usage)
    assert together.usage.completion_tokens == 6 * 24


async def test_lists_of_token_ids_are_prompts(client: openai.AsyncOpenAI) -> None:
    first, second = await tokens_of(client, "one"), await tokens_of(client, "two words")

    answer = await client.completions.create(prompt=[first, second], **SEEDED)

    by_text = await client.completions.create(prompt=["one", "two words"], **SEEDED)
    assert [choice.text for choice in answer.choices] == [choice.text for choice in by_text.choices]


async def test_without_max_tokens_sixteen_are_made(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt=TEXT, extra_body={"ignore_eos": True})

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("k", [0, 3])
async def test_legacy_logprobs_are_parallel_arrays_streamed_or_not(client: openai.AsyncOpenAI, k: int) -> None:
    whole = await client.completions.create(prompt=TEXT, logprobs=k, **SEEDED)
    _, chunks = await streamed(client, prompt=TEXT, logprobs=k, **SEEDED)

    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or []) == len(logprobs.text_offset or []) == 24
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        parts = [getattr(choice.logprobs, name) for chunk in chunks for choice in chunk.choices]
        assert [item for part in parts for item in part] == getattr(logprobs, name)


async def test_text_offsets_point_at_the_token_or_the_broken_character_before_it(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(prompt=TEXT, logprobs=0, **SEEDED)

    text, logprobs = answer.choices[0].text, answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.text_offset is not None
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if "\ufffd" not in token:
            assert text[offset:].lstrip("\ufffd").startswith(token.lstrip("\ufffd"))


async def test_the_last_event_of_a_choice_has_its_reason(client: openai.AsyncOpenAI) -> None:
    _, chunks = await streamed(client, prompt=TEXT, stream_options={"include_usage": True}, **SEEDED)

    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24


async def test_the_same_seed_repeats_and_another_does_not(client: openai.AsyncOpenAI) -> None:
    first = await client.completions.create(prompt=TEXT, **SEEDED)
    again = await client.completions.create(prompt=TEXT, **SEEDED)
    other = await client.completions.create(prompt=TEXT, **{**SEEDED, "seed": 6})

    assert first.choices[0].text == again.choices[0].text != other.choices[0].text


async def test_equal_prompts_without_a_seed_get_different_answers(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt=[TEXT] * 3, n=2, max_tokens=16)

    assert len({choice.text for choice in answer.choices}) == 6


async def test_many_ids_are_detokenized_like_few(client: openai.AsyncOpenAI) -> None:
    few = await client.post("/../detokenize", cast_to=dict[str, Any], body={"tokens": [70, 71, 72]})
    many = await client.post("/../detokenize", cast_to=dict[str, Any], body={"tokens": [70, 71, 72] * 2000})

    assert many == {"prompt": few["prompt"] * 2000}


async def test_tokenize_and_detokenize_are_inverse(client: openai.AsyncOpenAI) -> None:
    ids = await tokens_of(client, TEXT + " äöü 漢字")

    answer = await client.post("/../detokenize", cast_to=dict[str, Any], body={"model": "tiny", "tokens": ids})

    assert answer["prompt"] == TEXT + " äöü 漢字"


async def test_tokenize_renders_messages_with_the_chat_template(client: openai.AsyncOpenAI) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}

    answer = await client.post("/../tokenize", cast_to=dict[str, Any], body=body)
    chat = await client.chat.completions.create(model="tiny", messages=body["messages"], max_tokens=1)  # type: ignore[arg-type]

    assert chat.usage is not None
    assert answer["count"] == len(answer["tokens"]) == chat.usage.prompt_tokens
    assert answer["max_model_len"] == 2048


async def test_all_served_names_are_listed(client: openai.AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]

    assert [model.id for model in models] == ["tiny", "alias"]
    assert (await client.models.retrieve("alias")).id == "alias"
