"""The API process in front of the real engine with the demo model: what the fake one cannot show."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
MESSAGES: Any = [{"role": "user", "content": "Convert 5 km to m."}]


@pytest.fixture(scope="module")
def demo(start_real: Any) -> Any:
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "256", "--max-model-len", "512")
    return start_real(DEMO, "--served-model-name", "demo", *flags).wait_until_ready()


@pytest.fixture
async def sdk(demo: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with demo.client() as made:
        yield made


async def streamed(sdk: openai.AsyncOpenAI, **options: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    async for chunk in await sdk.chat.completions.create(model="demo", messages=MESSAGES, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


async def test_greedy_answers_end_by_themselves_streamed_or_not(sdk: openai.AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    texts = await streamed(sdk, temperature=0)

    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content
    assert "<|" not in whole.choices[0].message.content
    assert texts == {0: whole.choices[0].message.content}


async def test_choice_i_is_what_seed_plus_i_gives(sdk: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.5}

    together = await sdk.chat.completions.create(**options, n=3, seed=40)
    alone = [await sdk.chat.completions.create(**options, seed=40 + index) for index in range(3)]

    assert [choice.message.content for choice in together.choices] == [
        answer.choices[0].message.content for answer in alone
    ]


async def test_the_likeliest_token_is_the_greedy_one(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2
    )

    assert answer.choices[0].logprobs is not None
    for entry in answer.choices[0].logprobs.content or []:
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0


async def test_a_bias_of_100_forces_a_token_and_of_minus_100_forbids_it(sdk: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "demo", "prompt": "The", "max_tokens": 4, "temperature": 0, "logprobs": 0}
    plain = await sdk.completions.create(**options)
    body: Any = {"model": "demo", "prompt": plain.choices[0].text[:1], "add_special_tokens": False}
    token = (await sdk.post("/../tokenize", cast_to=dict[str, Any], body=body))["tokens"][0]

    forced = await sdk.completions.create(**options, logit_bias={str(token): 100})
    forbidden = await sdk.completions.create(**options, logit_bias={str(token): -100})

    assert forced.choices[0].text == plain.choices[0].text[:1] * 4
    assert forbidden.choices[0].text != forced.choices[0].text


async def test_a_stop_token_ends_the_answer_without_its_text_and_is_named(sdk: openai.AsyncOpenAI) -> None:
    body: Any = {"model": "demo", "prompt": "T", "add_special_tokens": False}
    token = (await sdk.post("/../tokenize", cast_to=dict[str, Any], body=body))["tokens"][0]
    forced: dict[str, Any] = {"model": "demo", "prompt": "The", "max_tokens": 8, "logit_bias": {str(token): 100}}

    ended = await sdk.completions.create(**forced, extra_body={"stop_token_ids": [token]})
    later = await sdk.completions.create(**forced, extra_body={"stop_token_ids": [token], "min_tokens": 3})

    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    assert ended.choices[0].model_extra == {"stop_reason": token}
    assert ended.usage is not None and ended.usage.completion_tokens == 1
    assert later.usage is not None and later.usage.completion_tokens > 3


def test_a_checkpoint_without_weights_ends_the_worker_and_names_the_file(start_real: Any, tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())

    worker = start_real(tmp_path, "--device", "cpu", "--compute-threads", "1")

    assert worker.wait() != 0
    assert "safetensors" in worker.log.splitlines()[-1]
    assert "Traceback" not in worker.log


def test_a_corrupt_checkpoint_ends_the_worker_and_names_the_file(start_real: Any, tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)

    worker = start_real(tmp_path, "--device", "cpu", "--compute-threads", "1")

    assert worker.wait() != 0
    assert str(tmp_path / "model.safetensors") in worker.log.splitlines()[-1]
    assert "Traceback" not in worker.log
    assert "process=engine" not in worker.log  # told before torch is imported, so within a moment


def test_a_missing_shard_ends_the_worker_and_is_named(start_real: Any, tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    worker = start_real(tmp_path, "--device", "cpu", "--compute-threads", "1")

    assert worker.wait() == 2
    assert "model-00001-of-00001.safetensors" in worker.log.splitlines()[-1]
    assert "Traceback" not in worker.log
    assert "process=engine" not in worker.log
