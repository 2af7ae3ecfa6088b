"""The renderer turns bodies into the same token ids in every process that has the bundle."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from quire_contract.openai.decode import decode_request, decode_routing_fields
from quire_contract.openai.errors import ApiError
from quire_contract.openai.requests import ChatCompletionRequest, CompletionRequest, TokenizeRequest
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12 + 30? 日本"}]


@pytest.fixture
def renderer(model_dir: Path) -> PromptRenderer:
    """The worker's."""
    return PromptRenderer(
        PromptBundle.from_model_dir(model_dir, block_size=16, max_model_len=512, served_model_names=["demo"])
    )


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "demo", "messages": MESSAGES, **fields}).encode()


def completion_body(prompt: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "demo", "prompt": prompt, **fields}).encode()


def test_chat_ids_equal_transformers(model_dir: Path, renderer: PromptRenderer) -> None:
    oracle = AutoTokenizer.from_pretrained(model_dir)

    ids = renderer.chat(MESSAGES)

    assert ids == oracle.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)


def test_completion_ids_equal_transformers(model_dir: Path, renderer: PromptRenderer) -> None:
    oracle = AutoTokenizer.from_pretrained(model_dir)

    ids = [renderer.completion("the quick fox", add) for add in (True, False)]

    assert ids == [oracle("the quick fox", add_special_tokens=add).input_ids for add in (True, False)]
    assert len(ids[0]) == len(ids[1]) + 1


@pytest.mark.parametrize(
    "fields", [{}, {"add_generation_prompt": False}, {"reasoning_effort": "none"}, {"add_special_tokens": True}]
)
def test_a_router_with_the_bundle_gets_the_workers_ids_for_a_chat(
    renderer: PromptRenderer, fields: dict[str, Any]
) -> None:
    router = PromptRenderer(PromptBundle.from_bytes(renderer.bundle.to_bytes()))
    body = chat_body(**fields)

    routed = router.request_prompts(decode_routing_fields(body))

    assert routed == renderer.request_prompts(decode_request(ChatCompletionRequest, body))


@pytest.mark.parametrize("prompt", ["the fox", ["the", "fox"], [5, 6], [[5], [6, 7]]])
def test_a_router_with_the_bundle_gets_the_workers_ids_for_a_completion(renderer: PromptRenderer, prompt: Any) -> None:
    router = PromptRenderer(PromptBundle.from_bytes(renderer.bundle.to_bytes()))
    body = completion_body(prompt)

    routed = router.request_prompts(decode_routing_fields(body))

    assert routed == renderer.request_prompts(decode_request(CompletionRequest, body))


def test_token_ids_are_prompts_as_they_are(renderer: PromptRenderer) -> None:
    request = decode_request(CompletionRequest, completion_body([[5, 6], [7]]))

    assert renderer.request_prompts(request) == [[5, 6], [7]]


def test_ids_that_the_model_has_but_the_tokenizer_lacks_are_taken(renderer: PromptRenderer) -> None:
    assert renderer.request_prompts(decode_request(CompletionRequest, completion_body([511]))) == [[511]]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [([512], "prompt[0]"), ([[1], [2, -1]], "prompt[1][1]"), ("", "prompt"), (["a", ""], "prompt[1]")],
)
def test_a_prompt_that_is_none_is_refused_by_path(renderer: PromptRenderer, prompt: Any, param: str) -> None:
    request = decode_request(CompletionRequest, completion_body(prompt, add_special_tokens=False))

    with pytest.raises(ApiError) as caught:
        renderer.request_prompts(request)

    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(renderer: PromptRenderer, model_dir: Path) -> None:
    longest = max(map(len, AutoTokenizer.from_pretrained(model_dir).get_vocab()))

    fits = renderer.completion("  " * (longest * 256))
    with pytest.raises(ApiError) as caught:
        renderer.completion("x" * (longest * 512 + 1))

    with pytest.raises(ApiError) as caught_in_chat:
        renderer.chat([{"role": "user", "content": "x" * (longest * 512)}])

    assert fits
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert (caught.value.param, caught_in_chat.value.param) == ("prompt", "messages")
    assert "512 tokens" in caught.value.message


def test_tokenize_gives_the_ids_of_the_same_request(renderer: PromptRenderer) -> None:
    tokenize = decode_request(TokenizeRequest, json.dumps({"messages": MESSAGES}).encode())

    ids = renderer.request_prompts(tokenize)

    assert ids == renderer.request_prompts(decode_request(ChatCompletionRequest, chat_body()))
    assert renderer.token_strings(ids[0][:1]) == ["<|im_start|>"]


def test_text_comes_back(renderer: PromptRenderer, byte_level: Tokenizer) -> None:
    ids = byte_level.encode("日本語 fox<|im_end|>").ids

    stream = renderer.stream()

    assert renderer.decode(ids) == "日本語 fox"
    assert renderer.decode(ids, skip_special_tokens=False) == "<|bos|>日本語 fox<|im_end|>"
    assert "".join([*map(stream.push, ids), stream.finish()]) == "日本語 fox"


def test_a_tokenizer_that_truncates_or_pads_does_neither_here(model_dir: Path, byte_level: Tokenizer) -> None:
    limited = Tokenizer.from_str(byte_level.to_str())
    limited.enable_truncation(3)
    limited.enable_padding(length=8)
    limited.save(str(model_dir / "tokenizer.json"))

    renderer = PromptRenderer(
        PromptBundle.from_model_dir(model_dir, block_size=16, max_model_len=8, served_model_names=[])
    )

    assert renderer.completion("the quick brown fox") == byte_level.encode("the quick brown fox").ids
    assert renderer.completion("x", False) == byte_level.encode("x", add_special_tokens=False).ids


def test_a_router_needs_neither_torch_nor_transformers() -> None:
    modules = "prompt, kv_events, load_report, router_config, trust, names, telemetry, request_id, block_hash"
    code = f"import sys\nfrom quire_contract import {modules}\nfrom quire_contract.openai import decode, responses\n"
    check = (
        "heavy = {'torch', 'transformers', 'numpy', 'aiohttp'} & sys.modules.keys()\nsys.exit(', '.join(heavy) or None)"
    )

    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
