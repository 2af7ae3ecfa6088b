"""A stream that goes on at another worker is the stream that it would have been, after whichever event it was left."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_contract import names
from quire_contract.trust import Trust
from tests.worker.server.replaying import Worker, progress_after

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
QUESTION = "Convert 5 km to m."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"metres": {"type": "integer", "minimum": 0, "maximum": 9999}, "unit": {"enum": ["m", "é"]}},
    "required": ["metres", "unit"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "convert", "description": "Convert.", "parameters": SCHEMA}
CHAT: Any = {"model": "demo", "messages": MESSAGES, "stream": True, "max_tokens": 24}
LEGACY: Any = {"model": "demo", "prompt": QUESTION, "stream": True, "max_tokens": 16}
RESPONSE: Any = {"model": "demo", "input": QUESTION, "stream": True, "max_output_tokens": 24}
MESSAGE: Any = {"model": "demo", "messages": MESSAGES, "stream": True, "max_tokens": 24}
SEEDED: Any = {"temperature": 1.3, "seed": 40}
RANDOM: Any = {"temperature": 1.3}
GREEDY: Any = {"temperature": 0}
USAGE: Any = {"stream_options": {"include_usage": True}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "length", "schema": SCHEMA}}
CASES: dict[str, tuple[str, Any]] = {
    "a greedy chat": (names.PATH_CHAT, {**CHAT, **GREEDY, **USAGE}),
    "a chat without a seed": (names.PATH_CHAT, {**CHAT, **RANDOM, **USAGE}),
    "usage all along": (
        names.PATH_CHAT,
        {**CHAT, **SEEDED, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "penalties": (
        names.PATH_CHAT,
        {**CHAT, **SEEDED, "frequency_penalty": 1.5, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    ),
    "least tokens": (
        names.PATH_CHAT,
        {**CHAT, **GREEDY, "min_tokens": 12, "bad_words": ["m", "km"], "logit_bias": {"5": 3}},
    ),
    "stop strings": (names.PATH_CHAT, {**CHAT, **SEEDED, "stop": ["e", "to m"], "min_tokens": 6}),
    "stop strings that are shown": (
        names.PATH_COMPLETIONS,
        {**LEGACY, **SEEDED, "stop": ["ing", "th"], "include_stop_str_in_output": True},
    ),
    "log-probabilities": (names.PATH_CHAT, {**CHAT, **SEEDED, "logprobs": True, "top_logprobs": 2}),
    "log-probabilities and stop strings": (
        names.PATH_CHAT,
        {**CHAT, **SEEDED, "logprobs": True, "stop": ["the quick", "e w", "m."]},
    ),
    "log-probabilities of a completion": (
        names.PATH_COMPLETIONS,
        {**LEGACY, **SEEDED, "logprobs": 1, "echo": True, "stop": ["en", "s a"]},
    ),
    "a schema": (names.PATH_CHAT, {**CHAT, **SEEDED, "max_tokens": 60, "response_format": FORMAT}),
    "a regular expression that ends by itself": (
        names.PATH_COMPLETIONS,
        {**LEGACY, **SEEDED, "structured_outputs": {"regex": "(ab|cd){4}"}},
    ),
    "a tool that must be called": (
        names.PATH_CHAT,
        {
            **CHAT,
            **SEEDED,
            "max_tokens": 80,
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": "required",
            **USAGE,
        },
    ),
    "tools that may be called": (
        names.PATH_CHAT,
        {**CHAT, **SEEDED, "max_tokens": 40, "tools": [{"type": "function", "function": {**TOOL, "strict": True}}]},
    ),
    "two choices": (names.PATH_CHAT, {**CHAT, **SEEDED, "n": 2, **USAGE}),
    "two greedy choices": (names.PATH_CHAT, {**CHAT, **GREEDY, "n": 2, "max_tokens": 6}),
    "two prompts with two choices each": (
        names.PATH_COMPLETIONS,
        {**LEGACY, **SEEDED, "prompt": ["The", "A fox and"], "n": 2, "max_tokens": 5, **USAGE},
    ),
    "an echo": (names.PATH_COMPLETIONS, {**LEGACY, **GREEDY, "echo": True, "n": 2, "max_tokens": 5}),
    "log-probabilities of the prompt": (
        names.PATH_COMPLETIONS,
        {**LEGACY, **SEEDED, "prompt_logprobs": 1, "n": 2, "max_tokens": 5},
    ),
    "only a prompt": (names.PATH_COMPLETIONS, {**LEGACY, "max_tokens": 0, "echo": True, "logprobs": 1}),
    "token ids": (names.PATH_CHAT, {**CHAT, **SEEDED, "return_token_ids": True, "stop": ["er"]}),
    "repetition": (
        names.PATH_COMPLETIONS,
        {
            **LEGACY,
            **GREEDY,
            "logit_bias": {"70": 100},
            "repetition_detection": {"max_pattern_size": 2, "min_count": 4},
        },
    ),
    "an immediate stop token": (
        names.PATH_COMPLETIONS,
        {**LEGACY, **GREEDY, "logit_bias": {"70": 100}, "stop_token_ids": [70], "min_tokens": 3},
    ),
    "a response": (names.PATH_RESPONSES, {**RESPONSE, **SEEDED}),
    "a response with log-probabilities": (
        names.PATH_RESPONSES,
        {**RESPONSE, **SEEDED, "max_output_tokens": 6, "include": ["message.output_text.logprobs"]},
    ),
    "a response with a call": (
        names.PATH_RESPONSES,
        {
            **RESPONSE,
            **SEEDED,
            "max_output_tokens": 80,
            "tools": [{"type": "function", **TOOL}],
            "tool_choice": "required",
        },
    ),
    "a message": (names.PATH_MESSAGES, {**MESSAGE, **RANDOM}),
    "a message with stop sequences": (names.PATH_MESSAGES, {**MESSAGE, **GREEDY, "stop_sequences": ["00", " m"]}),
    "a message with a call": (
        names.PATH_MESSAGES,
        {
            **MESSAGE,
            **RANDOM,
            "max_tokens": 80,
            "tools": [{"name": "convert", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
        },
    ),
}


@pytest.fixture(scope="module")
def trust_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    Trust.generate().write(folder)
    return folder


@pytest.fixture(scope="module")
def demo(start_real: Callable[..., Any], trust_dir: Path) -> Any:
    flags = ("--device", "cpu", "--compute-threads", "1", "--num-gpu-blocks-override", "256", "--max-model-len", "512")
    parsers = ("--tool-call-parser", "hermes", "--reasoning-parser", "think", "--trust-dir", str(trust_dir))
    endpoints = ("--kv-events-endpoint", "tcp://127.0.0.1:*", "--kv-replay-endpoint", "tcp://127.0.0.1:*")
    return start_real(DEMO, "--served-model-name", "demo", *flags, *parsers, *endpoints).wait_until_ready()


@pytest.fixture
async def worker(demo: Any, trust_dir: Path, http: aiohttp.ClientSession) -> AsyncIterator[Worker]:
    yield Worker(demo.base, Trust.read(trust_dir).token, http)


@pytest.mark.parametrize(("path", "body"), CASES.values(), ids=CASES.keys())
async def test_after_any_event_a_stream_goes_on_as_it_would_have(worker: Worker, path: str, body: Any) -> None:
    text = json.dumps(body)
    events = await worker.begin(path, text)
    whole = progress_after(path, text, events)

    for cut in range(1, len(events)):
        before = progress_after(path, text, events[:cut])
        rest = await worker.go_on(before.envelope)

        for event in rest:
            before.take(event)
        if body.get("n", 1) == 1:
            assert before.data == whole.data, cut
        assert sorted(before.data) == sorted(whole.data), cut
        assert before.tokens == whole.tokens, cut
        assert before.finished == whole.finished, cut
        assert before.usage[-1] == whole.usage[-1], cut
