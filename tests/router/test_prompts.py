"""Prompts become the hashes that workers use; without a bundle their text still tells them apart."""

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from quire_contract.block_hash import ExtraKeys, hash_blocks, wire_hashes
from quire_contract.openai.decode import decode_routing_fields
from quire_contract.prompt import PromptRenderer
from quire_router.prompts import BundleError, PromptReader, read_text

WORDS = " ".join(f"w{i % 500}" for i in range(100))


def read_body(**fields):
    body = msgspec.json.encode({"model": "m", **fields})
    return decode_routing_fields(body), body


@pytest.fixture
def reader(bundle):
    with ThreadPoolExecutor(1, "tokenizer") as executor:
        reader = PromptReader(executor)
        reader.add("d", bundle)
        yield reader


async def test_a_chat_is_hashed_as_the_worker_renders_it(reader, bundle):
    messages = [{"role": "system", "content": WORDS}, {"role": "user", "content": "w1"}]
    expected = PromptRenderer(bundle).chat(messages)

    blocks = await reader.read(*read_body(messages=messages), "d")

    assert blocks.num_tokens == len(expected)
    assert blocks.hashes == wire_hashes(hash_blocks(expected, 16))


async def test_text_and_its_token_ids_have_the_same_hashes_and_a_salt_changes_all(reader, bundle):
    token_ids = PromptRenderer(bundle).completion(WORDS)

    text = await reader.read(*read_body(prompt=WORDS), "d")
    ids = await reader.read(*read_body(prompt=token_ids), "d")
    salted = await reader.read(*read_body(prompt=WORDS, cache_salt="s"), "d")

    assert text == ids
    assert salted.hashes == wire_hashes(hash_blocks(token_ids, 16, ExtraKeys(cache_salt="s")))
    assert not set(salted.hashes) & set(text.hashes)


async def test_of_several_prompts_the_first_counts(reader):
    one = await reader.read(*read_body(prompt=WORDS), "d")

    several = await reader.read(*read_body(prompt=[WORDS, "w7"]), "d")

    assert several == one


async def test_a_truncated_prompt_is_hashed_as_the_worker_cuts_it(reader, bundle):
    kept = PromptRenderer(bundle).completion(WORDS)[-40:]

    blocks = await reader.read(*read_body(prompt=WORDS, truncate_prompt_tokens=40), "d")

    assert blocks.num_tokens == 40
    assert blocks.hashes == wire_hashes(hash_blocks(kept, 16))


async def test_a_long_prompt_is_tokenised_in_a_thread(reader, bundle):
    threads = []

    class Watched(PromptRenderer):
        def completion(self, prompt, add_special_tokens=True):
            threads.append(threading.current_thread().name)
            return super().completion(prompt, add_special_tokens)

    reader._bundles["d"] = (bundle, Watched(bundle))

    await reader.read(*read_body(prompt="w1"), "d")
    await reader.read(*read_body(prompt=WORDS * 20), "d")

    assert threads[0] == "MainThread"
    assert threads[1].startswith("tokenizer")


@pytest.mark.parametrize("fields", [{"prompt": [2**40]}, {"prompt": [-1]}], ids=["too large", "negative"])
async def test_a_prompt_that_cannot_be_hashed_is_left_to_the_worker(fields, reader):
    assert await reader.read(*read_body(**fields), "d") is None


@pytest.mark.parametrize("prompt", [[2**40], [2**70], [-1]], ids=["too large", "enormous", "negative"])
def test_ids_that_are_none_have_no_text_and_are_left_to_the_worker(prompt):
    blocks = read_text(read_body(prompt=prompt)[0])

    assert (blocks.num_tokens, blocks.hashes) == (0, [])


async def test_prompts_are_remembered_within_a_bound_on_their_blocks(bundle):
    with ThreadPoolExecutor(1, "tokenizer") as executor:
        reader = PromptReader(executor, max_cached_blocks=10)
        reader.add("d", bundle)
        held = []
        for first in ("w1", "w2", "w2", "w3"):
            blocks = await reader.read(*read_body(prompt=f"{first} {WORDS[:400]}"), "d")
            held.append((len(blocks.hashes), reader.num_cached_blocks))
        await reader.read(*read_body(prompt=WORDS * 20), "d")

    assert [number for number, _ in held] == [held[0][0]] * 4
    assert 5 <= held[0][0] <= 10
    assert [cached for _, cached in held] == [held[0][0]] * 4
    assert reader.num_cached_blocks == 0


async def test_an_unknown_bundle_gives_nothing(reader):
    assert await reader.read(*read_body(prompt="w1"), "another digest") is None


def test_a_bundle_of_another_scheme_is_refused_with_the_fix(reader, bundle):
    with pytest.raises(BundleError, match="use router and worker of one release"):
        reader.add("e", bundle.replace(scheme="other-v9"))


def test_the_text_of_a_longer_conversation_begins_like_the_shorter_one():
    first = [{"role": "system", "content": WORDS * 3}, {"role": "user", "content": WORDS}]
    longer = [*first, {"role": "assistant", "content": "w3"}, {"role": "user", "content": WORDS}]

    short, long, other = (
        read_text(read_body(messages=messages)[0]) for messages in (first, longer, [{"role": "user", "content": WORDS}])
    )

    assert long.hashes[: len(short.hashes)] == short.hashes
    assert len(long.hashes) > len(short.hashes) >= 5
    assert not set(other.hashes) & set(short.hashes)
    assert read_text(read_body(messages=first, cache_salt="s")[0]).hashes[0] != short.hashes[0]
