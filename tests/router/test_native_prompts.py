"""The C++ takes of each prompt from its memory what its twin in Python takes, and gives the same blocks."""

import itertools
import random
import threading
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_contract.block_hash import ExtraKeys, hash_blocks, token_bytes, wire_hashes
from quire_contract.chat_shapes import shape_of
from quire_contract.openai.messages import ChatMessage
from quire_contract.openai.requests import RoutingFields
from quire_contract.prompt_input import ChatInput
from quire_router.native.library import native
from quire_router.prompt_cache import PromptCache
from quire_router.prompt_job import MAX_NEW_CHARS, PromptBlocks, begin_job
from tests.router.test_prompt_jobs import CONTENTS, TEMPLATES, reader_of

MESSAGE_FIELDS = {
    "content": st.none() | st.text(max_size=5) | st.just([{"type": "text", "text": "part"}]),
    "name": st.none() | st.just("n"),
    "tool_call_id": st.none() | st.just(""),
    "reasoning": st.none() | st.just("r"),
    "reasoning_content": st.none() | st.just(""),
    "tool_calls": st.none() | st.just([]) | st.just([{"function": {"name": "f"}}]),
}
BODY_FIELDS = {
    "add_generation_prompt": st.none() | st.booleans(),
    "continue_final_message": st.none() | st.booleans(),
    "add_special_tokens": st.none() | st.booleans(),
    "chat_template_kwargs": st.none() | st.just({}) | st.just({"enable_thinking": False}),
    "reasoning_effort": st.none() | st.just("low"),
    "tools": st.none() | st.just([]) | st.just([{"type": "function", "function": {"name": "f"}}]),
    "truncate_prompt_tokens": st.none() | st.just(5),
}
MESSAGES = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "developer"])}, optional=MESSAGE_FIELDS)
BODIES = st.fixed_dictionaries({"messages": st.none() | st.lists(MESSAGES, max_size=3)}, optional=BODY_FIELDS)


class Numbers:
    """An encoder without words: a segment of four characters each, a token of each character."""

    def segments(self, text):
        return (text[start : start + 4] for start in range(0, len(text), 4))

    def encode(self, text):
        return token_bytes(list(map(ord, text)))

    def is_firm(self, text):
        return False


def encoder_of(encoder, **changed):
    given = {
        "digest": "d",
        "block_size": 4,
        "max_chars": -1,
        "too_long": print,
        "words": None,
        "split": None,
        "frame": None,
    }
    return native().PromptEncoder(encoder=encoder, **(given | changed))


def blocks_of(text, keys=ExtraKeys()):  # noqa: B008 - frozen
    ids = list(map(ord, text))
    return PromptBlocks(num_tokens=len(ids), block_tokens=4, hashes=wire_hashes(hash_blocks(ids, 4, keys)))


@pytest.mark.parametrize("added", ["words", "spaced"])
@pytest.mark.parametrize("name", ["chatml", "nothing between"])
def test_both_know_the_same_of_each_prompt(name, added):
    twins = [(reader_of(TEMPLATES[name], added, parts), cache) for parts, cache in
             [(None, PromptCache()), (native(), native().PromptCache(PromptBlocks))]]  # fmt: skip
    rng, differing, num_known = random.Random(name), [], 0
    assert [reader.encoder.words is not None for reader, _ in twins] == [added == "words"] * 2
    for number in range(150):
        roles = itertools.islice(itertools.cycle(["user", "assistant"]), rng.randint(1, 4))
        messages = [ChatMessage(role=role, content=rng.choice(CONTENTS[: 3 + number // 10])) for role in roles]
        keys = ExtraKeys(adapter=rng.choice([None, "a"]), cache_salt=rng.choice([None, "s\u00e9"]))
        fields = RoutingFields(model="m", messages=messages)

        seen = []
        for reader, cache in twins:
            job = begin_job(reader, cache, fields, keys)
            portion, seen_now = 1 + number * 7, [job.num_steps]
            while job.missing_chars:
                seen_now.append(job.missing_chars)
                job.advance(portion)
            seen.append((seen_now, job.num_steps, job.blocks(), len(cache)))
        num_known += len(seen[0][0]) == 1

        if seen[0] != seen[1]:
            differing.append(messages)
    assert differing == []
    assert num_known > 0


def test_of_an_enormous_prompt_both_read_as_much_and_estimate_the_rest_alike():
    readers = [reader_of(TEMPLATES["chatml"], "words", parts) for parts in (None, native())]
    caches = [PromptCache(), native().PromptCache(PromptBlocks)]
    contents = [f"number {number} of many; été " * 100 for number in range(MAX_NEW_CHARS // 2000)]
    fields = RoutingFields(model="m", messages=[ChatMessage(role="user", content=content) for content in contents])
    seen = []

    for reader, cache in zip(readers, caches, strict=True):
        for _ in range(2):
            job = begin_job(reader, cache, fields, ExtraKeys())
            while job.missing_chars:
                job.advance(50_000)
            seen.append(job.blocks())

    assert seen[:2] == seen[2:]
    assert 0 < len(seen[0].hashes) < len(seen[1].hashes)


@given(body=BODIES)
@settings(max_examples=400, deadline=None)
def test_the_shape_of_a_chat_is_that_which_its_template_would_get(body):
    fields = msgspec.convert({"model": "m", **body}, RoutingFields)

    found = native().plain_chat(fields, "default")

    if found is None:
        return
    shape, contents = found
    seen = [{"role": role, "content": content} for role, content in zip(shape[2:], contents, strict=True)]
    assert fields.prompt_input() == ChatInput(messages=seen, add_generation_prompt=shape[1])
    assert shape == shape_of("default", seen, shape[1], {})


def test_it_is_known_of_every_field_whether_it_decides_the_prompt():
    """`plain_chat` reads by name: one that is added must be read there, or be of no consequence."""
    of_no_consequence = {
        "model",
        "stream",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "cache_salt",
        "user",
        "prompt_cache_key",
    }
    of_no_consequence |= {"timeout_s", "queue_timeout_s", "prompt"}

    known = {"messages", *BODY_FIELDS, *of_no_consequence}

    assert known == set(RoutingFields.__struct_fields__)
    assert {"role", "audio", *MESSAGE_FIELDS} == set(ChatMessage.__struct_fields__)


def test_a_chat_of_messages_with_role_and_content_alone_has_a_shape():
    messages = [ChatMessage(role="system", content="a"), ChatMessage(role="user", content="b")]

    found = native().plain_chat(RoutingFields(model="m", messages=messages), "default")

    assert found == (("default", True, "system", "user"), ["a", "b"])


def chats_of(reader, cache, max_chars=100_000, max_new_chars=100_000):
    template = reader.renderer.template
    return native().ChatReader(
        cache, reader.native, template.shapes, template.known_pieces, "default", max_chars, max_new_chars
    )


@pytest.mark.parametrize("name", [*TEMPLATES, "asks", "dated"])
def test_chats_of_known_shapes_are_read_in_one_call_as_in_steps(name):
    asks = "{% for m in messages %}{{ 'x' if m.content else m.role }}{{ m.content }}{% endfor %}"
    dated = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{{ m.role }}{% endfor %}"
    reader = reader_of({**TEMPLATES, "asks": asks, "dated": dated}[name], "words", native())
    cache, twin, rng, num_read = (
        native().PromptCache(PromptBlocks),
        native().PromptCache(PromptBlocks),
        random.Random(1),
        0,
    )
    chats, shapes, differing = chats_of(reader, cache), reader.renderer.template.shapes, []
    for _ in range(200):
        roles = itertools.islice(itertools.cycle(["user", "assistant"]), rng.randint(1, 4))
        messages = [ChatMessage(role=role, content=rng.choice(CONTENTS)) for role in roles]
        fields = RoutingFields(model="m", messages=messages, add_generation_prompt=rng.choice([None, True, False]))
        keys = ExtraKeys(adapter=rng.choice([None, "a"]), cache_salt=rng.choice([None, "s"]))

        num_hits = shapes.num_hits
        read = chats.read(fields, keys.adapter, keys.cache_salt)
        num_read += read is not None
        num_hits = shapes.num_hits - num_hits
        job = begin_job(reader, twin, fields, keys)
        job.advance(10**6)
        if read is not None and (read != job.blocks() or num_hits != 1):
            differing.append(messages)
    assert differing == []
    assert num_read > 100


def test_a_chat_that_is_new_or_too_long_or_more_than_messages_is_left_to_others():
    reader, cache = reader_of(TEMPLATES["chatml"], "words", native()), native().PromptCache(PromptBlocks)
    fields = RoutingFields(model="m", messages=[ChatMessage(role="user", content="hello")])
    chats = chats_of(reader, cache)

    unknown = chats.read(fields, None, None)
    for _ in range(2):
        begin_job(reader, cache, fields, ExtraKeys())

    assert unknown is None
    assert chats.read(fields, None, None) is not None
    assert chats.read(msgspec.structs.replace(fields, tools=[]), None, None) is None
    assert chats_of(reader, cache, max_chars=30).read(fields, None, None) is None
    assert chats_of(reader, cache, max_new_chars=3).read(msgspec.structs.replace(fields), None, "new") is None


@pytest.mark.parametrize(
    "simple", [(["a"], (0,)), (["a", "b", "c"], (1,)), (["a", 3, "c"], ()), (["a", "b", "c"], ("x",))]
)
def test_a_trace_that_is_none_is_an_error(simple):
    shapes = SimpleNamespace(traces={("default", True, "user"): [SimpleNamespace(simple=simple)]}, num_hits=0)
    cache = native().PromptCache(PromptBlocks)
    chats = native().ChatReader(cache, encoder_of(Numbers()), shapes, print, "default", 99, 99)

    with pytest.raises((TypeError, IndexError)):
        chats.read(RoutingFields(model="m", messages=[ChatMessage(role="user", content="hello")]), None, None)


def test_what_may_be_read_at_once_is_read_and_of_more_nothing_is():
    cache, encoder = native().PromptCache(PromptBlocks), encoder_of(Numbers())
    text = "the quick brown fox jumps over the lazy dog " * 4

    early = cache.read(encoder, [text], None, "s", False, len(text) - 1)
    sizes = [len(cache)]
    found = [cache.read(encoder, [text + end], None, "s", False, most) for end, most in (("", 999), ("", 4), ("!", 5))]

    assert (early, sizes) == (None, [1])
    assert found == [blocks_of(text + end, ExtraKeys(cache_salt="s")) for end in ("", "", "!")]


def test_salts_adapters_and_bundles_are_read_apart():
    cache, found, keys = native().PromptCache(PromptBlocks), [], []
    for digest, adapter, salt in itertools.product("de", (None, "", "a", "as"), (None, "", "s", "\x00")):
        job = cache.job(encoder_of(Numbers(), digest=digest), ["text " * 20], adapter, salt, False)
        keys.append((job.num_steps, job.missing_chars))
        job.advance(999)
        found.append(job.blocks() == blocks_of("text " * 20, ExtraKeys(adapter=adapter, cache_salt=salt)))

    assert keys == [(1, 100)] * 32
    assert found == [True] * 32


def test_a_frame_stands_around_the_text_and_is_part_of_its_blocks():
    cache, frame = native().PromptCache(PromptBlocks), (token_bytes([1] * 9), token_bytes([2, 3]))
    encoder = encoder_of(Numbers(), frame=frame)

    framed = [cache.read(encoder, ["some text"], None, None, True, 99) for _ in range(2)]
    bare = cache.read(encoder, ["some text"], None, None, False, 99)

    ids = [1] * 9 + list(map(ord, "some text")) + [2, 3]
    assert [(one.num_tokens, one.hashes) for one in framed] == [(20, wire_hashes(hash_blocks(ids, 4)))] * 2
    assert bare == blocks_of("some text")


def test_a_full_memory_forgets_what_was_not_used_for_longest_and_never_grows():
    cache, encoder = native().PromptCache(PromptBlocks, max_bytes=60_000), encoder_of(Numbers())
    beginning, known, sizes = "begin " * 20, [], []
    for number in range(600):
        text = f"{beginning}{number:08}{'tail' * 20}"
        job = cache.job(encoder, [text], None, None, False)
        known.append(len(text) - job.missing_chars)
        job.advance(999)
        sizes.append(cache.size_bytes)
        assert job.blocks() == blocks_of(text)

    assert min(known[1:]) >= len(beginning)
    assert max(sizes) <= 60_000
    assert len(cache) < 200


def test_a_job_goes_on_over_steps_that_were_forgotten_meanwhile():
    cache, encoder = native().PromptCache(PromptBlocks, max_bytes=5000), encoder_of(Numbers())
    text, job = "one two three four", None

    job = cache.job(encoder, [text], None, None, False)
    while job.missing_chars:
        job.advance(1)
        cache.read(encoder, ["other" * 20], None, str(job.missing_chars), False, 999)

    assert job.blocks() == blocks_of(text)


def test_threads_that_read_at_once_get_each_the_blocks_of_its_own_prompt():
    reader, cache = (
        reader_of(TEMPLATES["chatml"], "words", native()),
        native().PromptCache(PromptBlocks, max_bytes=100_000),
    )
    wrong = []

    def read(seed):
        rng = random.Random(seed)
        for number in range(60):
            messages = [
                ChatMessage(role="user", content=f"{rng.choice(CONTENTS)} {seed} été{number}") for _ in range(2)
            ]
            job = begin_job(reader, cache, RoutingFields(model="m", messages=messages), ExtraKeys())
            while job.missing_chars:
                job.advance(100)
            ids = reader.renderer.chat([{"role": "user", "content": message.content} for message in messages])
            if job.blocks().hashes != wire_hashes(hash_blocks(ids, 4)):
                wrong.append(messages)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert cache.size_bytes <= 100_000


def test_one_job_is_never_at_work_twice():
    class Nested(Numbers):
        def encode(self, text):
            return job.advance(1)

    job = native().PromptCache(PromptBlocks).job(encoder_of(Nested()), ["text"], None, None, False)

    with pytest.raises(RuntimeError, match="another thread is at work"):
        job.advance(1)


class Failing(Numbers):
    """Fails at one of its methods, or gives what is wrong."""

    def __init__(self, name, answer):
        self.name, self.answer = name, answer

    def answered(self, name, text):
        if self.name != name:
            return getattr(Numbers, name)(self, text)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def segments(self, text):
        return self.answered("segments", text)

    def encode(self, text):
        return self.answered("encode", text)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("segments", LookupError()), ("segments", None), ("segments", [""]), ("segments", ["x" * 999]), ("segments", [3]),
        ("encode", LookupError()), ("encode", None), ("encode", b"123"),
    ],
    ids=str,
)  # fmt: skip
def test_an_encoder_that_fails_or_answers_wrongly_is_an_error(name, answer):
    cache = native().PromptCache(PromptBlocks)

    with pytest.raises((LookupError, TypeError, ValueError)):
        cache.read(encoder_of(Failing(name, answer)), ["some text that is read"], None, None, False, 999)

    assert cache.read(encoder_of(Numbers()), ["some text"], None, None, False, 999) == blocks_of("some text")


def test_a_text_that_is_certainly_too_long_is_refused_by_who_knows_the_words_for_it():
    def refuse(num_chars):
        raise LookupError(num_chars)

    encoder = encoder_of(Numbers(), max_chars=10, too_long=refuse)

    with pytest.raises(LookupError, match="11"):
        native().PromptCache(PromptBlocks).read(encoder, ["12345", "é2345", "é"], None, None, False, 999)


@pytest.mark.parametrize(
    "arguments",
    [
        (), (None,) * 6, (None, [], None, None, False, 9), (0, None, None, None, False, 9), (0, [3], None, None, False, 9),
        (0, ["a", b"b"], None, None, False, 9), (0, ["a"], 3, None, False, 9), (0, ["a"], None, b"", False, 9),
        (0, ["\ud800"], None, None, False, 9), (0, ["a"], None, None, True, 9), (0, ["a"], None, None, False, "9"),
        (0, ["a"], None, None, False, -1), (0, ["a"], None, None, False, 2**80),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_are_none_are_an_error(arguments):
    cache = native().PromptCache(PromptBlocks)
    given = (encoder_of(Numbers()), *arguments[1:]) if arguments and arguments[0] == 0 else arguments

    with pytest.raises((TypeError, ValueError, OverflowError)):
        cache.read(*given)


@pytest.mark.parametrize(
    "pieces", [[], [""], ["", "", ""], ["a"], ["a", "b"], ["x" * 60] * 4, ["", "é" * 60, "", "é" * 60, "e"]]
)
def test_whatever_the_pieces_are_they_are_read_as_their_text(pieces):
    cache, encoder = native().PromptCache(PromptBlocks), encoder_of(Numbers())

    found = [cache.read(encoder, pieces, None, None, False, 999) for _ in range(3)]

    assert found == [blocks_of("".join(pieces))] * 3
