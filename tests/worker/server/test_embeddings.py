"""Workers that embed and score, as real processes: the API process in front of the engine, through SDK and plain HTTP."""

import asyncio
import base64
import itertools
import json
import signal
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import torch
import transformers

from quire_contract.resume import HEADER_USAGE
from quire_contract.trust import Trust
from tests.worker.embedding_models import (
    CROSS_ENCODERS,
    DECODERS,
    ENCODERS,
    minilm,
    save_random,
    sentence_transformers_files,
)

TEXTS = ["A man is eating food.", "The girl is carrying a baby.", "A man is eating a piece of bread.", "x"]
LONG_TEXT = "many words " * 100
"""202 tokens."""
FLAGS = ("--device", "cpu", "--compute-threads", "1")


@pytest.fixture(scope="module")
def embeds(start_real: Any) -> Any:
    """all-MiniLM-L6-v2, with nothing said about what it is. Small batches: tests look at what happens between them."""
    budget = ("--max-num-batched-tokens", "512")
    return start_real(minilm(), "--served-model-name", "minilm", "alias", *FLAGS, *budget).wait_until_ready()


@pytest.fixture
async def sdk(embeds: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with embeds.client() as made:
        yield made


@pytest.fixture
def post(http: aiohttp.ClientSession) -> Callable[..., Any]:
    """Status and JSON of a POST."""

    async def send(worker: Any, path: str, **body: Any) -> tuple[int, Any]:
        async with http.post(worker.base + path, json=body) as response:
            return response.status, await response.json()

    return send


@pytest.fixture(scope="module")
def tokenised_folder(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Callable[..., Path]:
    """A random model beside a tokenizer whose ids it knows."""

    def make(kind: Any, **fields: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
        save_random(folder, (kind[0], {**kind[1], "vocab_size": vocab_size}), **fields)
        (folder / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
        return folder

    return make


def expected(texts: list[str]) -> list[list[float]]:
    """What transformers makes of the model in the package, by sentence-transformers' recipe."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    model = transformers.AutoModel.from_pretrained(minilm()).eval()
    found = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
            found.append(torch.nn.functional.normalize(hidden.mean(1))[0].tolist())
    return found


async def test_the_sdk_gets_the_models_own_vectors(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.embeddings.create(model="minilm", input=TEXTS)

    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    for item, vector in zip(answer.data, expected(TEXTS), strict=True):
        assert item.embedding == pytest.approx(vector, abs=1e-6)
    assert answer.model == "minilm"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 31


async def test_numbers_and_base64_hold_the_same_bits(embeds: Any, post: Any) -> None:
    _, numbers = await post(embeds, "/v1/embeddings", model="minilm", input=TEXTS, encoding_format="float")
    _, text = await post(embeds, "/v1/embeddings", model="minilm", input=TEXTS, encoding_format="base64")

    for number, coded in zip(numbers["data"], text["data"], strict=True):
        raw = base64.b64decode(coded["embedding"])
        assert struct.pack(f"<{len(number['embedding'])}f", *number["embedding"]) == raw
        assert len(raw) == 384 * 4


async def test_texts_lists_and_token_ids_give_the_same_vectors(embeds: Any, post: Any) -> None:
    _, tokens = await post(embeds, "/tokenize", prompt=TEXTS[0])
    forms = [TEXTS[0], [TEXTS[0]], tokens["tokens"], [tokens["tokens"]]]

    found = [(await post(embeds, "/v1/embeddings", model="alias", input=form))[1] for form in forms]

    assert [answer["data"] for answer in found] == [found[0]["data"]] * 4
    assert {answer["model"] for answer in found} == {"alias"}
    assert {answer["usage"]["prompt_tokens"] for answer in found} == {len(tokens["tokens"])}


async def test_a_vectors_bits_do_not_depend_on_who_else_asks(sdk: openai.AsyncOpenAI) -> None:
    texts = [f"{text} {n}" for n in range(8) for text in TEXTS]
    alone = [(await sdk.embeddings.create(model="minilm", input=text)).data[0].embedding for text in texts]

    answers = await asyncio.gather(
        sdk.embeddings.create(model="minilm", input=texts),
        *(sdk.embeddings.create(model="minilm", input=text) for text in texts),
    )

    assert [item.embedding for item in answers[0].data] == alone
    assert [answer.data[0].embedding for answer in answers[1:]] == alone


async def test_2048_inputs_are_answered_in_one_request(sdk: openai.AsyncOpenAI) -> None:
    texts = [f"text number {n}" for n in range(2048)]

    answer = await sdk.embeddings.create(model="minilm", input=texts)

    assert [item.index for item in answer.data] == list(range(2048))
    single = await sdk.embeddings.create(model="minilm", input=texts[2047])
    assert answer.data[2047].embedding == single.data[0].embedding


async def test_a_short_request_is_answered_while_a_long_one_is_computed(
    embeds: Any, sdk: openai.AsyncOpenAI, metric: Any
) -> None:
    long = asyncio.create_task(sdk.embeddings.create(model="minilm", input=[LONG_TEXT] * 60))
    async with asyncio.timeout(120):
        while await metric(embeds, "vllm:num_requests_running") == 0:
            pass

    await sdk.embeddings.create(model="minilm", input="a few words")

    assert not long.done()
    assert len((await long).data) == 60


async def test_a_text_that_is_too_long_is_refused_or_cut_as_asked(embeds: Any, post: Any) -> None:
    text = "word " * 300
    body = {"model": "minilm", "input": ["fine", text]}

    status, refused = await post(embeds, "/v1/embeddings", **body)
    _, cut = await post(embeds, "/v1/embeddings", **body, truncate_prompt_tokens=-1)
    _, short = await post(embeds, "/v1/embeddings", model="minilm", input="word " * 254)

    assert (status, refused["error"]["param"], refused["error"]["code"]) == (400, "input[1]", "context_length_exceeded")
    assert cut["data"][1]["embedding"] == short["data"][0]["embedding"]
    assert cut["usage"]["prompt_tokens"] == 3 + 256


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": "a", "dimensions": 64}, 400, "dimensions"),
        ({"input": "a", "model": "other"}, 404, "model"),
        ({"input": [[0, 99999]]}, 400, "input[1]"),
        ({"input": ""}, 200, None),
        ({"input": "a", "dimensions": 384}, 200, None),
        ({"input": "a", "add_special_tokens": False}, 200, None),
        ({"input": "", "add_special_tokens": False}, 400, "input"),
        ({"input": [[5] * 256] * 1200}, 400, "input"),
    ],
)
async def test_requests_are_judged_by_what_the_model_can_do(
    embeds: Any, post: Any, body: dict[str, Any], status: int, param: str | None
) -> None:
    found, answer = await post(embeds, "/v1/embeddings", **{"model": "minilm", **body})

    assert found == status
    if param == "input[1]":
        assert answer["error"]["param"] == "input[1]" and "99999" in answer["error"]["message"]
    elif param is not None:
        assert answer["error"]["param"] == param


async def test_documents_come_back_best_first(embeds: Any, post: Any) -> None:
    documents = [TEXTS[1], {"text": TEXTS[2]}, "bread and food", TEXTS[3]]
    vectors = expected([TEXTS[0], TEXTS[1], TEXTS[2], "bread and food", TEXTS[3]])
    cosines = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]

    status, answer = await post(embeds, "/v1/rerank", model="minilm", query=TEXTS[0], documents=documents)
    _, best = await post(embeds, "/rerank", query=TEXTS[0], documents=documents, top_n=2, return_documents=False)
    _, cohere = await post(embeds, "/v2/rerank", model="minilm", query=TEXTS[0], documents=documents)

    assert status == 200
    assert [item["index"] for item in answer["results"]] == sorted(range(4), key=lambda i: -cosines[i])
    for item in answer["results"]:
        assert item["relevance_score"] == pytest.approx(cosines[item["index"]], abs=1e-5)
    assert answer["results"][0]["document"] == {"text": TEXTS[2]}
    assert best["results"] == [{k: v for k, v in item.items() if k != "document"} for item in answer["results"][:2]]
    assert cohere["results"][:2] == best["results"]
    assert answer["usage"]["total_tokens"] > 0


async def test_pairs_are_scored_in_their_order(embeds: Any, post: Any) -> None:
    _, many = await post(embeds, "/v1/score", model="minilm", text_1=TEXTS[0], text_2=TEXTS[:3])
    _, pairs = await post(embeds, "/score", text_1=[TEXTS[0]] * 3, text_2=TEXTS[:3])

    scores = [item["score"] for item in many["data"]]
    assert [item["index"] for item in many["data"]] == [0, 1, 2]
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert scores[2] > scores[1]
    assert [item["score"] for item in pairs["data"]] == scores


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_model_that_embeds_says_so_where_text_is_asked_of_it(embeds: Any, post: Any, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}

    status, answer = await post(embeds, path, model="minilm", **body)

    assert (status, answer["error"]["param"]) == (400, "model")
    assert "makes embeddings" in answer["error"]["message"]
    assert "/v1/embeddings" in answer["error"]["message"]


async def test_a_model_that_generates_says_so_where_embeddings_are_asked_of_it(worker: Any, post: Any) -> None:
    embedding = await post(worker, "/v1/embeddings", model="tiny", input="hi")
    rerank = await post(worker, "/v1/rerank", model="tiny", query="hi", documents=["a"])

    for status, answer in (embedding, rerank):
        assert (status, answer["error"]["param"]) == (400, "model")
        assert "generates text" in answer["error"]["message"]


async def test_metrics_count_requests_inputs_and_tokens(
    start_real: Any, post: Any, metric: Any, eventually: Any
) -> None:
    own = start_real(minilm(), "--served-model-name", "minilm", *FLAGS).wait_until_ready()

    async def read() -> list[float]:
        return [
            await metric(own, "vllm:request_success_total", finished_reason="stop"),
            await metric(own, "quire_worker_embedding_inputs_total"),
            await metric(own, "vllm:prompt_tokens_total"),
            await metric(own, "vllm:e2e_request_latency_seconds_count"),
        ]

    await post(own, "/v1/embeddings", model="minilm", input=["a", "b c"])

    await eventually(read, [1, 2, 7, 1])
    assert await metric(own, "vllm:kv_cache_usage_perc") == 0
    assert await metric(own, "quire_worker_steps_total") > 0


async def test_a_client_that_leaves_takes_its_inputs_with_it(
    embeds: Any, sdk: openai.AsyncOpenAI, metric: Any, eventually: Any
) -> None:
    leaver = asyncio.create_task(sdk.embeddings.create(model="minilm", input=[LONG_TEXT] * 300))
    async with asyncio.timeout(120):
        while await metric(embeds, "vllm:num_requests_running") == 0:
            pass

    leaver.cancel()

    await eventually(lambda: metric(embeds, "vllm:num_requests_running"), 0)
    assert await metric(embeds, "vllm:request_success_total", finished_reason="abort") >= 1


async def test_a_full_queue_is_429_with_the_time_to_come_back(start_real: Any, http: aiohttp.ClientSession) -> None:
    small = start_real(minilm(), *FLAGS, "--served-model-name", "m", "--max-num-queued-reqs", "1").wait_until_ready()

    async def ask() -> tuple[int, str | None]:
        body = {"model": "m", "input": [LONG_TEXT] * 30}
        async with http.post(f"{small.base}/v1/embeddings", json=body) as response:
            return response.status, response.headers.get("Retry-After")

    with small.engine_held():
        asking = [asyncio.create_task(ask()) for _ in range(6)]
        refused = [await done for done in itertools.islice(asyncio.as_completed(asking), 5)]
    answers = await asyncio.gather(*asking)

    assert refused == [(429, "1")] * 5
    assert (200, None) in answers


async def test_embeddings_and_scores_take_no_longer_than_they_may(
    start_real: Any, post: Any, metric: Any, eventually: Any
) -> None:
    limit = ("--request-timeout", "0.05", "--max-num-batched-tokens", "256")
    hurried = start_real(minilm(), *FLAGS, *limit, "--served-model-name", "m").wait_until_ready()

    status, body = await post(hurried, "/v1/embeddings", model="m", input=[LONG_TEXT] * 600)
    scored, refused = await post(
        hurried, "/v1/rerank", model="m", query="a", documents=[LONG_TEXT + str(i) for i in range(600)]
    )

    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert (scored, refused["error"]["code"]) == (504, "deadline_exceeded")
    await eventually(lambda: metric(hurried, "vllm:num_requests_running"), 0)


async def test_a_terminated_worker_answers_what_it_has_begun(
    start_real: Any, http: aiohttp.ClientSession, eventually: Any
) -> None:
    worker = start_real(minilm(), *FLAGS, "--served-model-name", "m").wait_until_ready()
    body = {"model": "m", "input": [LONG_TEXT] * 10}
    async with http.post(f"{worker.base}/v1/embeddings", json={"model": "m", "input": "a"}) as response:
        assert response.status == 200

    with worker.engine_held():
        asking = asyncio.create_task(_ask(http, f"{worker.base}/v1/embeddings", body))
        await eventually(lambda: _ask(http, f"{worker.base}/load"), (200, {"server_load": 1}))
        worker.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(worker.wait_for_log, "event=draining")

    status, answer = await asking
    assert (status, len(answer["data"])) == (200, 10)
    assert await asyncio.to_thread(worker.wait) == 0


async def _ask(http: aiohttp.ClientSession, url: str, body: Any = None) -> tuple[int, Any]:
    request = http.get(url) if body is None else http.post(url, json=body)
    async with request as response:
        return response.status, await response.json()


async def test_a_cross_encoder_scores_pairs_and_ranks_documents(
    start_real: Any, post: Any, tokenised_folder: Callable[..., Path]
) -> None:
    folder = tokenised_folder(CROSS_ENCODERS["xlm-roberta"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    worker = start_real(folder, *FLAGS, "--served-model-name", "m").wait_until_ready()

    status, ranked = await post(
        worker, "/v1/rerank", model="m", query="fox", documents=["dog", "the lazy dog", "world"]
    )
    _, scored = await post(worker, "/v1/score", model="m", text_1="fox", text_2=["dog", "the lazy dog", "world"])
    refused = await post(worker, "/v1/embeddings", model="m", input="a")

    scores = [item["score"] for item in scored["data"]]
    assert status == 200
    assert [(r["index"], r["relevance_score"]) for r in ranked["results"]] == sorted(
        enumerate(scores), key=lambda s: -s[1]
    )
    _, tokens = await post(worker, "/tokenize", prompt="fox")
    _, second = await post(worker, "/tokenize", prompt="dog")
    with torch.inference_mode():
        logit = model(torch.tensor([tokens["tokens"] + second["tokens"]])).logits[0, 0]
    assert scores[0] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)
    assert refused[0] == 400 and "/v1/rerank" in refused[1]["error"]["message"]


async def test_a_router_that_asks_is_told_the_tokens_in_a_header(
    start_real: Any, http: aiohttp.ClientSession, tokenised_folder: Callable[..., Path], tmp_path: Path
) -> None:
    Trust.generate().write(tmp_path)
    endpoints = ("--kv-events-endpoint", "tcp://127.0.0.1:*", "--kv-replay-endpoint", "tcp://127.0.0.1:*")
    folder = tokenised_folder(DECODERS["qwen3-base"])
    sentence_transformers_files(folder, "lasttoken")
    worker = start_real(folder, *FLAGS, "--served-model-name", "m", "--trust-dir", str(tmp_path), *endpoints)
    worker.wait_until_ready()
    headers = {"x-quire-token": Trust.read(tmp_path).token, "x-quire-replay": "1"}
    bodies: dict[str, Any] = {
        "/v1/embeddings": {"input": ["the quick", "fox"]},
        "/v1/rerank": {"query": "fox", "documents": ["dog", "the lazy dog"]},
        "/v1/score": {"text_1": "fox", "text_2": ["dog"]},
    }

    told = []
    for path, body in bodies.items():
        async with http.post(worker.base + path, json={"model": "m", **body}, headers=headers) as response:
            told.append((response.headers[HEADER_USAGE], (await response.json())["usage"]["prompt_tokens"]))

    assert [header for header, _ in told] == [f"{num_tokens},0,0" for _, num_tokens in told]
    assert all(num_tokens > 0 for _, num_tokens in told)


async def test_a_decoder_with_sentence_transformers_files_embeds_and_may_be_cut(
    start_real: Any, post: Any, tokenised_folder: Callable[..., Path]
) -> None:
    folder = tokenised_folder(DECODERS["qwen3-base"], is_matryoshka=True)
    sentence_transformers_files(folder, "lasttoken")
    worker = start_real(folder, *FLAGS, "--served-model-name", "m").wait_until_ready()

    _, whole = await post(worker, "/v1/embeddings", model="m", input="the quick brown fox")
    _, cut = await post(worker, "/v1/embeddings", model="m", input="the quick brown fox", dimensions=16)
    too_many = await post(worker, "/v1/embeddings", model="m", input="a", dimensions=65)

    first = whole["data"][0]["embedding"][:16]
    length = sum(number * number for number in first) ** 0.5
    assert len(whole["data"][0]["embedding"]) == 64
    assert cut["data"][0]["embedding"] == pytest.approx([number / length for number in first], abs=1e-5)
    assert (too_many[0], too_many[1]["error"]["param"]) == (400, "dimensions")


async def test_one_input_whose_numbers_overflow_fails_alone_and_in_words(
    start_real: Any, post: Any, metric: Any, tokenised_folder: Callable[..., Path]
) -> None:
    folder = tokenised_folder(ENCODERS["bert"])
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7] = float("inf")
    model.save_pretrained(folder)
    worker = start_real(folder, *FLAGS, "--served-model-name", "m").wait_until_ready()

    bad, good = await asyncio.gather(
        post(worker, "/v1/embeddings", model="m", input=[[3, 7], [3]]),
        post(worker, "/v1/embeddings", model="m", input=[[3]]),
    )

    assert (bad[0], bad[1]["error"]["code"]) == (500, "output_not_finite")
    assert good[0] == 200
    assert await metric(worker, "quire_worker_non_finite_outputs_total") == 1


def test_a_task_that_the_model_cannot_have_ends_the_worker_with_the_one_it_can(start_real: Any) -> None:
    worker = start_real(minilm(), *FLAGS, "--task", "generate")

    assert worker.wait() != 0
    assert "use --task embed or auto" in worker.log.splitlines()[-1]
