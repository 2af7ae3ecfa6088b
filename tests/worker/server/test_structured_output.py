"""Structured output over HTTP: with the demo model, and with the fake one, whose tokens are as random as can be."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import openai
import pytest

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples" / "models" / "quire-demo"
SCHEMAS: list[dict[str, Any]] = json.loads((ROOT / "bench" / "structured_schemas.json").read_text())
MESSAGES: Any = [{"role": "user", "content": "Convert 5 km to m."}]
PERSON = SCHEMAS[0]
SMALL = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def demo(start_real: Any) -> Any:
    flags = (
        "--device",
        "cpu",
        "--compute-threads",
        "1",
        "--max-model-len",
        "1024",
        "--num-gpu-blocks-override",
        "1024",
    )
    return start_real(DEMO, "--served-model-name", "demo", *flags).wait_until_ready()


@pytest.fixture
async def sdk(demo: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with demo.client() as made:
        yield made


def wanting(**outputs: Any) -> dict[str, Any]:
    return {"extra_body": {"structured_outputs": outputs}}


def schema_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


async def ask(sdk: openai.AsyncOpenAI, model: str = "demo", **options: Any) -> list[tuple[str, str]]:
    """(text, finish reason) of each choice."""
    made = await sdk.chat.completions.create(**{"model": model, "messages": MESSAGES, "max_tokens": 300, **options})
    return [(choice.message.content or "", choice.finish_reason) for choice in made.choices]


async def ask_streamed(sdk: openai.AsyncOpenAI, **options: Any) -> list[tuple[str, str]]:
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    stream = await sdk.chat.completions.create(
        **{"model": "demo", "messages": MESSAGES, "max_tokens": 300, **options}, stream=True
    )
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    return [(texts[index], reasons[index]) for index in sorted(texts)]


def assert_valid(schema: dict[str, Any], answers: list[tuple[str, str]]) -> None:
    for text, reason in answers:
        assert reason == "stop"
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema["title"])
async def test_every_answer_of_the_demo_model_validates(sdk: openai.AsyncOpenAI, schema: dict[str, Any]) -> None:
    answers = await ask(sdk, response_format=schema_format(schema), temperature=1, seed=3, n=3)

    assert_valid(schema, answers)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema["title"])
async def test_every_answer_of_a_random_model_validates(client: openai.AsyncOpenAI, schema: dict[str, Any]) -> None:
    options: Any = {"response_format": schema_format(schema), "temperature": 1, "seed": 5, "n": 3, "max_tokens": 1000}

    answers = await ask(client, "tiny", **options)

    assert_valid(schema, answers)


@pytest.mark.parametrize("depth", ["1", "2"])
async def test_a_small_cache_and_plans_in_flight_change_no_answer(
    launch: Any, client: openai.AsyncOpenAI, depth: str
) -> None:
    options: Any = {"response_format": schema_format(PERSON), "temperature": 1, "max_tokens": 400}
    tight = launch("--served-model-name", "tiny", "--depth", depth, "--num-gpu-blocks-override", "70", "--seed", "7")

    expected = await asyncio.gather(*(ask(client, "tiny", seed=seed, **options) for seed in range(8)))
    async with tight.wait_until_ready().client() as cramped:
        found = await asyncio.gather(*(ask(cramped, "tiny", seed=seed, **options) for seed in range(8)))

    assert found == expected
    for answers in found:
        assert_valid(PERSON, answers)


async def test_a_stream_adds_up_to_the_whole_answer(sdk: openai.AsyncOpenAI) -> None:
    options: Any = {"response_format": schema_format(PERSON), "temperature": 1, "seed": 11, "n": 4}

    whole = await ask(sdk, **options)
    streamed = await ask_streamed(sdk, **options)

    assert streamed == whole
    assert_valid(PERSON, whole)


async def test_a_greedy_answer_is_computed_once_and_shown_n_times(sdk: openai.AsyncOpenAI) -> None:
    answers = await ask(sdk, response_format={"type": "json_object"}, temperature=0, n=2, stop=["}"], max_tokens=40)

    assert answers[0] == answers[1]
    assert answers[0][0].startswith("{")


async def test_regex_choice_and_grammar_are_obeyed(sdk: openai.AsyncOpenAI) -> None:
    phone = await ask(sdk, **wanting(regex=r"\d{3}-\d{4}/[é日]"), n=3, temperature=2)
    chosen = await ask(sdk, **wanting(choice=['say "yes"', "no\\way", "maybe\n"]), n=4, temperature=2)
    lark = 'start: item ("," item)~2\nitem: /[a-c]+/ ":" NUMBER\nNUMBER: /[0-9]{1,3}/\n%ignore / {0,1}/'
    made = await ask(sdk, **wanting(grammar=lark.replace("~2", "{2}")), n=3, max_tokens=900)

    assert all(re.fullmatch(r"[0-9]{3}-[0-9]{4}/[é日]", text) for text, _ in phone)
    assert {text for text, _ in chosen} <= {'say "yes"', "no\\way", "maybe\n"}
    assert {reason for _, reason in (*phone, *chosen)} == {"stop"}
    pattern = r" ?".join((r"[a-c]+", ":", r"[0-9]{1,3}", *[",", r"[a-c]+", ":", r"[0-9]{1,3}"] * 2))
    assert all(re.fullmatch(f" ?{pattern} ?", text) for text, reason in made if reason == "stop")


async def test_a_completion_obeys_too(sdk: openai.AsyncOpenAI) -> None:
    made = await sdk.completions.create(
        model="demo", prompt=["one", "two"], max_tokens=60, temperature=1, n=2, **wanting(json=SMALL)
    )

    assert_valid(SMALL, [(choice.text, choice.finish_reason) for choice in made.choices])
    assert len(made.choices) == 4


async def test_the_options_of_json_are_obeyed(sdk: openai.AsyncOpenAI) -> None:
    tight = await ask(sdk, **wanting(json=SMALL, disable_any_whitespace=True), n=3)
    open_schema = {key: value for key, value in SMALL.items() if key != "additionalProperties"}
    closed = await ask(sdk, **wanting(json=json.dumps(open_schema), disable_additional_properties=True), n=3)

    assert_valid(SMALL, tight + closed)
    assert not any(re.search(r"[:,{] ", text.replace(json.loads(text)["name"], "")) for text, _ in tight)


async def test_stop_strings_and_max_tokens_cut_as_ever(sdk: openai.AsyncOpenAI) -> None:
    ((stopped, reason),) = await ask(sdk, response_format=schema_format(SMALL), stop=['"n"'])
    ((cut, cut_reason),) = await ask(sdk, response_format=schema_format(SMALL), max_tokens=3)

    assert (stopped.startswith("{"), '"n"' in stopped, reason) == (True, False, "stop")
    assert (cut.startswith("{"), cut_reason) == (True, "length")


async def test_a_complete_answer_ends_whatever_ignore_eos_and_min_tokens_say(sdk: openai.AsyncOpenAI) -> None:
    ignoring = await ask(sdk, extra_body={"structured_outputs": {"regex": "a{3,5}"}, "ignore_eos": True})
    waiting = await ask(sdk, extra_body={"structured_outputs": {"choice": ["yes"]}, "min_tokens": 100})
    long = await ask(sdk, extra_body={"structured_outputs": {"regex": "[ab]+"}, "min_tokens": 30}, max_tokens=60)

    assert ignoring == [("aaaaa", "stop")]
    assert waiting == [("yes", "stop")]
    assert len(long[0][0]) >= 30


async def test_penalties_biases_and_logprobs_go_with_a_grammar(sdk: openai.AsyncOpenAI) -> None:
    made = await sdk.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        max_tokens=100,
        response_format=schema_format(SMALL),
        frequency_penalty=2,
        presence_penalty=2,
        logit_bias={"5": 100, "0": 100, "2": 100},
        logprobs=True,
        top_logprobs=2,
    )

    assert_valid(SMALL, [(made.choices[0].message.content or "", made.choices[0].finish_reason)])
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert "".join(entry.token for entry in logprobs.content or []).startswith("{")


async def test_a_free_neighbour_draws_the_same_tokens(sdk: openai.AsyncOpenAI) -> None:
    free: Any = {"temperature": 1.3, "seed": 9, "max_tokens": 80}

    alone = await ask(sdk, **free)
    beside, *answers = await asyncio.gather(
        ask(sdk, **free), *(ask(sdk, response_format=schema_format(PERSON), seed=seed) for seed in range(4))
    )

    assert beside == alone
    for answer in answers:
        assert_valid(PERSON, answer)


async def test_an_answer_that_must_be_empty_still_shows_the_prompts_scores(sdk: openai.AsyncOpenAI) -> None:
    body = {"structured_outputs": {"grammar": 'start: ""'}, "ignore_eos": True, "prompt_logprobs": 0}
    asked: Any = {"model": "demo", "prompt": "Convert 5 km", "echo": True, "logprobs": 0, "extra_body": body}

    whole = (await sdk.completions.create(**asked)).choices[0]
    chunks = [chunk async for chunk in await sdk.completions.create(**asked, stream=True)]

    assert (whole.text, whole.finish_reason) == ("Convert 5 km", "stop")
    assert whole.logprobs is not None
    assert len(whole.logprobs.token_logprobs or ()) == len(whole.to_dict()["prompt_logprobs"]) == 4  # type: ignore[arg-type]
    assert [chunk.choices[0].to_dict() for chunk in chunks] == [whole.to_dict()]


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "wrong type": ({"json": {"type": "strin"}}, "json: Invalid type: strin"),
    "no such keyword": ({"json": {"type": "array", "uniqueItems": True}}, 'json: Unimplemented keys: ["uniqueItems"]'),
    "loop": ({"json": {"$ref": "#"}}, "json: no text matches it"),
    "deep chain": (
        {
            "json": {
                "$defs": {
                    f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(2000)
                }
                | {"a2000": {"type": "string"}},
                "$ref": "#/$defs/a0",
            }
        },
        "too deeply nested",
    ),
    "open regex": ({"regex": "(a"}, "regex: invalid regular expression: unclosed group"),
    "monstrous regex": ({"regex": "((a{1,100}){1,100}){1,100}"}, "too many expressions"),
    "garbage": ({"grammar": "start: )("}, "1(8): expecting rule"),
    "another dialect": ({"grammar": "root = 'a'"}, "grammar: "),
    "ambiguous": ({"grammar": 'start: s\ns: s s s | "a" | "b" | s s | ""'}, "takes "),
}


async def test_hostile_grammars_are_400s_for_their_senders_and_a_stream_beside_them_goes_on(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, demo: Any
) -> None:
    free: Any = {"temperature": 1.3, "seed": 21, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    alone = await ask_streamed(sdk, **free)

    async def refused(outputs: dict[str, Any]) -> tuple[int, Any]:
        body = {"model": "demo", "messages": MESSAGES, "structured_outputs": outputs, "stream": True}
        async with http.post(f"{demo.base}/v1/chat/completions", json=body) as response:
            return response.status, (await response.json())["error"]

    beside, *errors = await asyncio.gather(
        ask_streamed(sdk, **free), *(refused(outputs) for outputs, _ in HOSTILE.values())
    )

    assert beside == alone
    for (outputs, words), (status, error) in zip(HOSTILE.values(), errors, strict=True):
        field = f"structured_outputs.{next(iter(outputs))}"
        assert (status, error["param"], error["type"]) == (400, field, "invalid_request_error")
        assert error["message"].startswith(f"{field}: ")
        assert words in error["message"]


async def test_what_was_compiled_and_refused_is_counted_and_no_schema_is_logged(
    sdk: openai.AsyncOpenAI, demo: Any, metric: Any, eventually: Any
) -> None:
    names = ("grammar_cache_hits_total", "grammar_rejections_total", "grammar_compile_seconds_count")
    hits, rejections, compiles = [await metric(demo, f"quire_worker_{name}") for name in names]
    secret = {"enum": ["walrus-7431"]}

    await ask(sdk, **wanting(json=secret))
    await ask(sdk, **wanting(json=secret))
    with pytest.raises(openai.BadRequestError):
        await ask(sdk, **wanting(regex="(walrus-7431"))

    async def counted() -> list[float]:
        return [await metric(demo, f"quire_worker_{name}") for name in names]

    await eventually(counted, [hits + 1, rejections + 1, compiles + 2])
    assert "walrus-7431" not in demo.log


async def test_a_model_whose_tokenizer_names_no_end_refuses_grammars_and_serves_the_rest(
    launch: Any, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 400, "max_position_embeddings": 512}))
    worker = launch("--served-model-name", "tiny", model=tmp_path).wait_until_ready()

    async with worker.client() as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.completions.create(model="tiny", prompt="a", **wanting(choice=["a"]))
        free = await sdk.completions.create(model="tiny", prompt="a", max_tokens=2)

    assert "structured_outputs.choice: " in caught.value.message
    assert "end token" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert free.choices[0].finish_reason == "length"
