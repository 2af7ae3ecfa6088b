"""Echo, log-probabilities of prompts, and lm-eval's way of asking for them, on the real engine with the demo model."""

import json
from collections.abc import AsyncIterator, Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
import transformers

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
TEXTS = ["Convert 5 km to m.", "The capital of France is", "2 + 2 = 4, 3 + 3 = 6, 4 + 4 ="]
MODEL_LEN = 512


@pytest.fixture(scope="module")
def demo(start_real: Any) -> Any:
    # Chunks of 48 tokens, so that prompts are computed in several steps beside others that decode.
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "256", "--dtype", "float32")
    limits = ("--max-model-len", str(MODEL_LEN), "--max-num-seqs", "16", "--max-num-batched-tokens", "48")
    return start_real(DEMO, "--served-model-name", "demo", *flags, *limits).wait_until_ready()


@pytest.fixture(scope="module")
def oracle() -> Callable[[list[int]], torch.Tensor]:
    """Token ids to log-probabilities [len, V]: row i is of the token after i."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logprobs(token_ids: list[int]) -> torch.Tensor:
        return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].float(), -1)

    return logprobs


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DEMO)


Ask = Callable[..., Any]


@pytest.fixture
async def ask(demo: Any) -> AsyncIterator[Ask]:
    """POSTs to /v1/completions, or the given path: the answer's JSON, which must have the given status."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def post(path: str = "/v1/completions", status: int = 200, **body: Any) -> Any:
            async with session.post(f"{demo.base}{path}", json={"model": "demo", **body}) as response:
                text = await response.text()
                assert response.status == status, text
                return json.loads(text)

        yield post


@pytest.fixture
async def stream(demo: Any) -> AsyncIterator[Ask]:
    """The same, streamed: the chunks."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def post(path: str = "/v1/completions", **body: Any) -> list[Any]:
            body = {"model": "demo", "stream": True, **body}
            async with session.post(f"{demo.base}{path}", json=body) as response:
                text = await response.text()
                assert response.status == 200, text
            events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
            assert events[-1] == "[DONE]"
            return [json.loads(event) for event in events[:-1]]

        yield post


def put_together(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """A completion's streamed pieces by choice, as the whole answer has them."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {"index": piece["index"], "text": "", "logprobs": None})
            choice["text"] += piece["text"]
            if "token_ids" in piece:
                choice["token_ids"] = choice.get("token_ids", []) + piece["token_ids"]
            if piece["logprobs"] is not None:
                found = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
                choice["logprobs"] = {name: found[name] + values for name, values in piece["logprobs"].items()}
            for name in ("prompt_token_ids", "prompt_logprobs"):
                if name in piece:
                    assert name not in choice
                    choice[name] = piece[name]
            choice["finish_reason"] = piece["finish_reason"]
            if "stop_reason" in piece:
                choice["stop_reason"] = piece["stop_reason"]
    return choices


def of_completions(outputs: list[Any], ctxlens: list[int]) -> list[tuple[float, bool]]:
    """What lm-eval's local-completions reads: sum over the continuation, without the token that was generated."""
    found = []
    for output in outputs:
        for choice, ctxlen in zip(sorted(output["choices"], key=itemgetter("index")), ctxlens, strict=True):
            logprobs = choice["logprobs"]["token_logprobs"][ctxlen:-1]
            tops = choice["logprobs"]["top_logprobs"][ctxlen:-1]
            greedy = all(logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True))
            found.append((sum(logprobs), greedy))
    return found


async def test_lm_evals_log_likelihoods_are_transformers(ask: Ask, oracle: Any, tokenizer: Any) -> None:
    contexts = [tokenizer(text).input_ids for text in [*TEXTS, "word " * 60]]
    likeliest = [oracle(ids)[-1].argmax().item() for ids in contexts]
    continuations = [[likeliest[0]], tokenizer(" Paris").input_ids, [likeliest[2], 5, 7], [9, 8, 7, 6, 5]]
    prompts = [context + rest for context, rest in zip(contexts, continuations, strict=True)]

    request = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = await ask(**request)
    alone = [await ask(**{**request, "prompt": [prompt]}) for prompt in prompts]

    found = of_completions([answer], [len(context) for context in contexts])
    for (total, greedy), context, rest in zip(found, contexts, continuations, strict=True):
        guesses = oracle(context + rest)[len(context) - 1 : -1]
        assert total == pytest.approx(sum(guesses[i, token].item() for i, token in enumerate(rest)), abs=1e-3)
        assert greedy == (guesses.argmax(-1).tolist() == rest)
    assert found[0][1] is True
    assert found == [
        value for one, context in zip(alone, contexts, strict=True) for value in of_completions([one], [len(context)])
    ]


async def test_an_echo_without_output_is_the_prompt_alone(ask: Ask, stream: Ask, tokenizer: Any, oracle: Any) -> None:
    ids = tokenizer(TEXTS[0]).input_ids
    body = {"prompt": TEXTS[0], "echo": True, "max_tokens": 0, "logprobs": 2}

    answer = await ask(**body)
    chunks = await stream(**body)

    (choice,) = answer["choices"]
    logprobs = choice.pop("logprobs")
    assert choice == {"index": 0, "text": TEXTS[0], "finish_reason": "length", "stop_reason": None}
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert list(logprobs) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    assert {len(values) for values in logprobs.values()} == {len(ids)}
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    guesses = oracle(ids)
    wanted = [guesses[i, token].item() for i, token in enumerate(ids[1:])]
    assert logprobs["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
    for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert token in top and 1 <= len(top) <= 3
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert TEXTS[0][offset:].startswith(token) or token.startswith("<|")
    assert put_together(chunks)[0] == {**choice, "logprobs": logprobs}


async def test_an_echo_goes_on_with_the_output(ask: Ask, stream: Ask, tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[1]).input_ids
    body = {"prompt": [ids, ids[:3]], "echo": True, "max_tokens": 6, "logprobs": 0, "n": 2, "seed": 4, "temperature": 1}

    answer = await ask(**body)
    plain = await ask(**{**body, "echo": False})
    chunks = await stream(**body)

    echoes = [tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids[:3], skip_special_tokens=True)]
    for choice, without in zip(answer["choices"], plain["choices"], strict=True):
        prompt, echo = (ids, echoes[0]) if choice["index"] < 2 else (ids[:3], echoes[1])
        assert choice["text"] == echo + without["text"]
        assert choice["logprobs"]["tokens"][len(prompt) :] == without["logprobs"]["tokens"]
        assert choice["logprobs"]["token_logprobs"][len(prompt) :] == without["logprobs"]["token_logprobs"]
        offsets = [len(echo) + offset for offset in without["logprobs"]["text_offset"]]
        assert choice["logprobs"]["text_offset"][len(prompt) :] == offsets
    assert sorted(put_together(chunks).values(), key=itemgetter("index")) == answer["choices"]


async def test_an_echo_needs_no_logprobs(ask: Ask, tokenizer: Any) -> None:
    plain = await ask(prompt=TEXTS[2], max_tokens=5, temperature=0)

    answer = await ask(prompt=TEXTS[2], max_tokens=5, temperature=0, echo=True)

    assert answer["choices"][0]["text"] == TEXTS[2] + plain["choices"][0]["text"]
    assert answer["choices"][0]["logprobs"] is None


async def test_prompt_logprobs_have_vllms_form_on_both_routes(
    ask: Ask, stream: Ask, tokenizer: Any, oracle: Any
) -> None:
    ids = tokenizer(TEXTS[2]).input_ids
    guesses = oracle(ids)
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 3, "temperature": 0}

    answer = await ask(prompt=ids, prompt_logprobs=2, max_tokens=2, n=2)
    chunks = await stream(prompt=ids, prompt_logprobs=2, max_tokens=2, n=2)
    talk = await ask("/v1/chat/completions", **chat, prompt_logprobs=1, return_token_ids=True)
    talk_chunks = await stream("/v1/chat/completions", **chat, prompt_logprobs=1, return_token_ids=True)

    first, second = answer["choices"]
    assert first["prompt_logprobs"] == second["prompt_logprobs"]
    streamed = put_together(chunks)
    assert streamed[0]["prompt_logprobs"] == streamed[1]["prompt_logprobs"] == first["prompt_logprobs"]
    assert first["prompt_logprobs"][0] is None
    for i, (token, entries) in enumerate(zip(ids[1:], first["prompt_logprobs"][1:], strict=True)):
        assert list(entries) == list(dict.fromkeys(map(str, [token, *guesses[i].topk(2).indices.tolist()])))
        for key, entry in entries.items():
            assert entry["logprob"] == pytest.approx(guesses[i, int(key)].item(), abs=1e-4)
            assert entry["rank"] == (guesses[i] > guesses[i, int(key)]).sum().item() + 1
            assert entry["decoded_token"] == tokenizer.decode([int(key)])
    assert len(talk["prompt_logprobs"]) == len(talk["prompt_token_ids"]) == talk["usage"]["prompt_tokens"]
    assert [chunk.get("prompt_logprobs") for chunk in talk_chunks[:2]] == [talk["prompt_logprobs"], None]
    assert [chunk.get("prompt_token_ids") for chunk in talk_chunks[:2]] == [talk["prompt_token_ids"], None]


async def test_a_prompt_with_logprobs_is_computed_even_if_it_is_in_the_cache(ask: Ask, tokenizer: Any) -> None:
    ids = tokenizer("once upon a time " * 20).input_ids
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 1, "temperature": 0}
    await ask(**body)

    again = await ask(**body)
    first = await ask(**body, prompt_logprobs=0)
    second = await ask(**body, prompt_logprobs=0)

    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert len(first["choices"][0]["prompt_logprobs"]) == len(ids)
    assert first["choices"][0]["prompt_logprobs"] == second["choices"][0]["prompt_logprobs"]


async def test_many_long_prompts_at_once_give_what_each_gives_alone(ask: Ask, stream: Ask, tokenizer: Any) -> None:
    prompts = [tokenizer(f"{i} times {i} is {i * i}, " * 12).input_ids[: 150 + 7 * i] for i in range(12)]
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "logprobs": 2, "echo": True}

    answer = await ask(prompt=prompts, **body)
    chunks = await stream(prompt=prompts, **body)
    alone = [await ask(prompt=prompt, **body) for prompt in prompts]

    assert answer["usage"]["prompt_tokens"] * 3 > 4096  # made into JSON beside the event loop
    assert answer["choices"] == [{**one["choices"][0], "index": i} for i, one in enumerate(alone)]
    assert sorted(put_together(chunks).values(), key=itemgetter("index")) == answer["choices"]


async def test_too_many_logprobs_of_prompts_are_refused_by_the_fields_name(ask: Ask) -> None:
    prompts = [[5] * 500] * 250

    by_field = await ask(status=400, prompt=prompts, prompt_logprobs=20, max_tokens=1)
    by_echo = await ask(status=400, prompt=prompts, logprobs=20, echo=True, max_tokens=1)

    assert (by_field["error"]["param"], by_echo["error"]["param"]) == ("prompt_logprobs", "echo")
