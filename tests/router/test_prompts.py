"""Prompts become the hashes that workers use; without a bundle their text still tells them apart."""

import asyncio
import threading
from concurrent.futures import Executor, ThreadPoolExecutor

import msgspec
import pytest

from quire_contract.block_hash import ExtraKeys, hash_blocks, wire_hashes
from quire_contract.openai.decode import decode_routing_fields
from quire_contract.prompt import PromptRenderer
from quire_router.native.library import native
from quire_router.prompts import (
    MAX_READS_OF_TENANT,
    MAX_TEXT_BYTES,
    TEXT_BLOCK_BYTES,
    BundleError,
    PromptReader,
    read_text,
)

WORDS = " ".join(f"w{i % 500}" for i in range(100))


def read_body(**fields):
    body = msgspec.json.encode({"model": "m", **fields})
    return decode_routing_fields(body), len(body)


@pytest.fixture(params=["python", "native"])
def parts(request):
    return native() if request.param == "native" else None


@pytest.fixture
def reader(bundle, parts):
    with ThreadPoolExecutor(1, "tokenizer") as executor:
        reader = PromptReader(executor, parts)
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


class Threads(Executor):
    """Runs work in one thread and notes how much there was, and what waits for `gate`."""

    def __init__(self):
        self.inner, self.num_jobs, self.gate = ThreadPoolExecutor(1, "tokenizer"), 0, threading.Event()
        self.gate.set()

    def submit(self, work, /, *args, **kwargs):
        self.num_jobs += 1
        return self.inner.submit(lambda: (self.gate.wait(), work(*args, **kwargs))[1])


@pytest.fixture
def threads(bundle):
    threads = Threads()
    yield threads
    threads.gate.set()
    threads.inner.shutdown()


async def test_only_long_text_that_is_new_is_tokenised_in_a_thread(threads, bundle, parts):
    reader, jobs = PromptReader(threads, parts), []
    reader.add("d", bundle)
    long = {"role": "system", "content": WORDS * 10}

    for messages in ([{"role": "user", "content": "w1"}], [long], [long, {"role": "user", "content": "w2"}]):
        await reader.read(*read_body(messages=messages), "d")
        jobs.append(threads.num_jobs)

    assert jobs == [0, 1, 1]


async def test_what_follows_a_known_beginning_is_hashed_as_the_worker_does(reader, bundle):
    renderer, talk, seen = PromptRenderer(bundle), [], []
    for turn in range(4):
        talk.append({"role": "user", "content": f"w{turn} {WORDS}"})
        blocks = await reader.read(*read_body(messages=talk), "d")
        ids = renderer.chat(talk)
        seen.append((blocks.num_tokens, blocks.hashes) == (len(ids), wire_hashes(hash_blocks(ids, 16))))
        talk.append({"role": "assistant", "content": "w3 w4"})

    assert seen == [True] * 4


async def test_adapters_and_salts_have_hashes_of_their_own_as_at_the_worker(reader, bundle):
    ids, body = PromptRenderer(bundle).completion(WORDS), read_body(prompt=WORDS, cache_salt="own")
    several = [ExtraKeys(adapter="a"), ExtraKeys(adapter="a", cache_salt="own"), ExtraKeys(cache_salt="tenant's"), None]

    found = [(await reader.read(*body, "d", keys=keys)).hashes for keys in several for _ in range(2)]

    several[-1] = ExtraKeys(cache_salt="own")
    assert found == [wire_hashes(hash_blocks(ids, 16, keys)) for keys in several for _ in range(2)]


async def test_of_an_enormous_prompt_a_part_is_read_and_the_rest_is_estimated(reader, bundle):
    roomy = bundle.replace(max_model_len=10_000_000)
    reader.add("roomy", roomy)
    messages = [{"role": "user", "content": WORDS + " "}] * 2000
    expected = PromptRenderer(roomy).chat(messages)

    first = await reader.read(*read_body(messages=messages), "roomy")
    again = await reader.read(*read_body(messages=[*messages, {"role": "user", "content": "w1"}]), "roomy")

    assert 0 < len(first.hashes) * 16 < len(expected) * 3 / 4
    assert first.hashes == wire_hashes(hash_blocks(expected, 16))[: len(first.hashes)]
    assert first.num_tokens == pytest.approx(len(expected), rel=0.05)
    assert len(again.hashes) > 1.5 * len(first.hashes)


async def test_long_prompts_of_one_tenant_leave_room_for_those_of_others(threads, bundle, parts):
    reader = PromptReader(threads, parts)
    reader.add("d", bundle)
    threads.gate.clear()
    bodies = [read_body(prompt=f"w{number} {WORDS * 10}") for number in range(MAX_READS_OF_TENANT + 2)]

    hoarding = [asyncio.ensure_future(reader.read(*body, "d", tenant="a")) for body in bodies[:-1]]
    await asyncio.wait(hoarding, return_when=asyncio.FIRST_COMPLETED)
    other = asyncio.ensure_future(reader.read(*bodies[-1], "d", tenant="b"))
    threads.gate.set()
    blocks = [await reading for reading in hoarding]

    assert [one is None for one in blocks] == [False] * MAX_READS_OF_TENANT + [True]
    assert (await other).num_tokens == blocks[0].num_tokens


@pytest.mark.parametrize("fields", [{"prompt": [2**40]}, {"prompt": [-1]}], ids=["too large", "negative"])
async def test_a_prompt_that_cannot_be_hashed_is_left_to_the_worker(fields, reader):
    assert await reader.read(*read_body(**fields), "d") is None


async def test_of_more_token_ids_than_the_model_takes_nothing_is_hashed(reader, bundle):
    most = bundle.max_model_len
    fitting, beyond = ({"prompt": [5] * number} for number in (most, most + 1))

    read = await reader.read(*read_body(**fitting), "d")
    unread = await reader.read(*read_body(**beyond), "d")

    assert read.num_tokens == most
    assert unread is None


def test_of_a_million_token_ids_no_more_is_looked_at_than_of_a_text():
    fields, _ = read_body(prompt=[5] * 1_000_000)

    blocks = read_text(fields)

    assert blocks.num_tokens == 1_000_000
    assert len(blocks.hashes) == MAX_TEXT_BYTES // TEXT_BLOCK_BYTES


@pytest.mark.parametrize("prompt", [[2**40], [2**70], [-1]], ids=["too large", "enormous", "negative"])
def test_ids_that_are_none_have_no_text_and_are_left_to_the_worker(prompt):
    blocks = read_text(read_body(prompt=prompt)[0])

    assert (blocks.num_tokens, blocks.hashes) == (0, [])


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
