"""Fields that speak of single tokens, over HTTP: what is asked for is shown, streamed as whole, and what is forbidden never comes."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
MESSAGES = [{"role": "user", "content": "Convert 5 km to m."}]

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def demo(start_real: Any) -> Any:
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "128", "--max-model-len", "256")
    return start_real(DEMO, "--served-model-name", "demo", *flags).wait_until_ready()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as made:
        yield made


@pytest.fixture
def ask(demo: Any, session: aiohttp.ClientSession) -> Ask:
    """POSTs to /v1/completions, or the given path: the answer's JSON."""

    async def post(path: str = "/v1/completions", status: int = 200, **body: Any) -> Any:
        async with session.post(f"{demo.base}{path}", json={"model": "demo", **body}) as response:
            text = await response.text()
            assert response.status == status, text
            return json.loads(text)

    return post


@pytest.fixture
def stream(demo: Any, session: aiohttp.ClientSession) -> Ask:
    """The same, streamed: the chunks."""

    async def post(path: str = "/v1/completions", **body: Any) -> list[Any]:
        async with session.post(f"{demo.base}{path}", json={"model": "demo", "stream": True, **body}) as response:
            text = await response.text()
            assert response.status == 200, text
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    return post


async def ids_of(ask: Ask, text: str) -> list[int]:
    found: list[int] = (await ask("/tokenize", prompt=text, add_special_tokens=False))["tokens"]
    return found


def texts_of(chunks: list[Any]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def streamed_ids(chunks: list[Any], index: int = 0) -> list[int]:
    pieces = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return [token for piece in pieces for token in piece.get("token_ids", [])]


async def test_only_allowed_tokens_come(ask: Ask) -> None:
    allowed = [*await ids_of(ask, "0123456789"), 700]

    answer = await ask(
        prompt="Say", max_tokens=20, allowed_token_ids=allowed, return_token_ids=True, n=4, temperature=2, top_p=0.99
    )

    came = {token for choice in answer["choices"] for token in choice["token_ids"]}
    assert came <= set(allowed)
    assert len(came) > 2


async def test_a_bad_word_never_comes_at_the_beginning_or_after_a_space(ask: Ask) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24}
    text = (await ask("/v1/chat/completions", **body))["choices"][0]["message"]["content"]
    words = [word for word in text.split() if len(word) > 1]

    without = await ask("/v1/chat/completions", **body, bad_words=words)

    shown = without["choices"][0]["message"]["content"]
    assert words and shown
    assert not set(shown.split()) & set(words)


async def test_a_request_that_allows_nothing_is_refused_for_its_sender_alone(ask: Ask) -> None:
    (token,) = await ids_of(ask, "T")
    body: dict[str, Any] = {"prompt": "The", "allowed_token_ids": [token], "max_tokens": 3}

    error = await ask(status=400, **body, stop_token_ids=[token], min_tokens=2)
    fine = await ask(**body, temperature=0)

    assert error["error"]["code"] == "no_token_allowed"
    assert "allowed_token_ids" in error["error"]["message"]
    assert fine["choices"][0]["text"] == "TTT"


async def test_named_tokens_have_their_logprobs_in_place_of_the_likeliest(ask: Ask) -> None:
    named = [9, 700, 12]
    body: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 3, "logprobs": True}

    every = await ask("/v1/chat/completions", **body, top_logprobs=20, return_tokens_as_token_ids=True)
    found = await ask("/v1/chat/completions", **body, logprob_token_ids=named, return_tokens_as_token_ids=True)
    legacy = await ask(prompt="The", max_tokens=2, logprobs=0, logprob_token_ids=named, return_tokens_as_token_ids=True)

    for entry, other in zip(
        found["choices"][0]["logprobs"]["content"], every["choices"][0]["logprobs"]["content"], strict=True
    ):
        assert [top["token"] for top in entry["top_logprobs"]] == ["token_id:9", "token_id:700", "token_id:12"]
        assert (entry["token"], entry["logprob"]) == (other["token"], other["logprob"])
        best = {top["token"]: top["logprob"] for top in other["top_logprobs"]}
        for top in entry["top_logprobs"]:
            assert top["logprob"] == pytest.approx(best.get(top["token"], top["logprob"]), abs=1e-4)
            assert top["logprob"] <= entry["logprob"]
    for token, tops in zip(
        legacy["choices"][0]["logprobs"]["tokens"], legacy["choices"][0]["logprobs"]["top_logprobs"], strict=True
    ):
        assert set(tops) == {"token_id:9", "token_id:700", "token_id:12", token}


@pytest.mark.parametrize("n", [1, 2])
async def test_token_ids_are_shown_streamed_as_whole(ask: Ask, stream: Ask, n: int) -> None:
    prompt = await ids_of(ask, "The capital of")
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 12, "seed": 3, "n": n, "return_token_ids": True}

    answer = await ask(**body)
    chunks = await stream(**body)

    for choice in answer["choices"]:
        assert choice["prompt_token_ids"] == prompt
        pieces = [piece for chunk in chunks for piece in chunk["choices"] if piece["index"] == choice["index"]]
        assert [piece.get("prompt_token_ids") for piece in pieces] == [prompt, *[None] * (len(pieces) - 1)]
        assert streamed_ids(chunks, choice["index"]) == choice["token_ids"]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
    assert sum(len(choice["token_ids"]) for choice in answer["choices"]) == answer["usage"]["completion_tokens"]


async def test_token_ids_of_a_chat_are_shown_streamed_as_whole(ask: Ask, stream: Ask) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "stop": ["0"], "return_token_ids": True}

    answer = await ask("/v1/chat/completions", **body)
    chunks = await stream("/v1/chat/completions", **body)

    ids = answer["choices"][0]["token_ids"]
    assert len(ids) == answer["usage"]["completion_tokens"]
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert streamed_ids(chunks) == ids
    assert [chunk.get("prompt_token_ids") for chunk in chunks[:2]] == [answer["prompt_token_ids"], None]


async def test_nothing_is_shown_that_was_not_asked_for(ask: Ask, stream: Ask) -> None:
    answer = await ask(prompt="The", max_tokens=2)
    talk = await ask("/v1/chat/completions", messages=MESSAGES, max_tokens=2)
    chunks = await stream(prompt="The", max_tokens=2)

    shown = [answer["choices"][0], talk, talk["choices"][0], *(chunk["choices"][0] for chunk in chunks)]
    for part in shown:
        assert not {"token_ids", "prompt_token_ids", "prompt_logprobs"} & part.keys()


async def test_a_prompt_that_is_too_long_is_cut_where_asked(ask: Ask) -> None:
    ids = await ids_of(ask, "one two three four five six seven eight nine ten " * 40)
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 4, "temperature": 0}

    refused = await ask(status=400, **body)
    cut = await ask(**body, truncate_prompt_tokens=-1, return_token_ids=True, echo=True)
    same = await ask(**{**body, "prompt": ids[-252:]})

    assert refused["error"]["code"] == "context_length_exceeded"
    assert cut["choices"][0]["prompt_token_ids"] == ids[-252:]
    assert cut["choices"][0]["text"].endswith(same["choices"][0]["text"])
    assert len(cut["choices"][0]["text"]) > len(same["choices"][0]["text"])
    assert cut["usage"] == same["usage"] | {"prompt_tokens_details": cut["usage"]["prompt_tokens_details"]}


async def test_an_output_that_goes_in_circles_ends(ask: Ask, stream: Ask) -> None:
    first, second = await ids_of(ask, "A"), await ids_of(ask, "B")
    forced: dict[str, Any] = {
        "prompt": "The",
        "max_tokens": 40,
        "temperature": 0,
        "allowed_token_ids": first + second,
        "return_token_ids": True,
        "repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 5},
    }

    answer = await ask(**forced)
    later = await ask(**forced, min_tokens=30)
    chunks = await stream(**forced)

    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("repetition", "repetition_detected")
    assert 5 <= len(choice["token_ids"]) < 40
    assert len(later["choices"][0]["token_ids"]) >= 30
    assert chunks[-1]["choices"][0]["finish_reason"] == "repetition"
    assert streamed_ids(chunks) == choice["token_ids"]


async def test_stop_strings_and_special_tokens_are_part_of_the_text_where_asked(ask: Ask) -> None:
    (end,) = await ids_of(ask, "<|im_end|>")
    (letter,) = await ids_of(ask, "T")
    ends: dict[str, Any] = {"prompt": "The", "max_tokens": 4, "logit_bias": {str(end): 100}}
    stops: dict[str, Any] = {"prompt": "The", "max_tokens": 4, "logit_bias": {str(letter): 100}, "stop": "TT"}

    texts = [
        (await ask(**body))["choices"][0]["text"]
        for body in (
            {**ends, "include_stop_str_in_output": True, "skip_special_tokens": False},
            {**ends, "include_stop_str_in_output": True},
            {**ends, "skip_special_tokens": False},
            {**stops, "include_stop_str_in_output": True},
            stops,
        )
    ]

    assert texts == ["<|im_end|>", "", "", "TT", ""]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids[0]"),
        ({"logprobs": 0, "logprob_token_ids": [-1]}, "logprob_token_ids[0]"),
        ({"best_of": 2}, "best_of"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(ask: Ask, fields: dict[str, Any], param: str) -> None:
    error = await ask(status=400, prompt="The", **fields)

    assert error["error"]["param"] == param
    assert error["error"]["message"].startswith(param)


async def test_equal_greedy_choices_are_computed_once(ask: Ask) -> None:
    answer = await ask(prompt="The capital", n=3, temperature=0, max_tokens=5, return_token_ids=True, user="somebody")

    first, *others = answer["choices"]
    assert [choice["token_ids"] for choice in others] == [first["token_ids"]] * 2
    assert answer["usage"]["completion_tokens"] == 3 * len(first["token_ids"])
