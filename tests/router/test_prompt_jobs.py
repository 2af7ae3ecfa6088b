"""Whatever was read before, and whatever stands in messages, a prompt has the blocks that the worker gives it."""

import itertools
import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from quire_contract.block_hash import ExtraKeys, hash_blocks, wire_hashes
from quire_contract.openai.messages import ChatMessage
from quire_contract.openai.requests import RoutingFields
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.prompt_segments import KNOWN_SPLITS
from quire_router.native.library import native
from quire_router.prompt_cache import PromptCache
from quire_router.prompt_job import PromptBlocks, Reader, begin_job

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|im_end|><|long|>", "<|x|>"]
"""Tokens with which words are encoded one by one."""
SPACED = "<|im_end|>\n<|long|>"
"""With this one they are not."""
ADDED = {
    "words": [],
    "spaced": [AddedToken(SPACED, normalized=False, special=True)],
    "fussy": [
        AddedToken(SPACED, normalized=False, special=True),
        AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False),
    ],
}
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "ends in a token": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content | trim }}{{ '<|im_end|>' }}{% endfor %}",
    "may become another token": "{% for m in messages %}{{ m.role + m.content + '<|im_end|>\\n' }}{% endfor %}",
    "no tokens": "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}",
    "nothing between": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
CONTENTS = [
    "the quick brown fox " * 60, "jumps over the lazy dog, " * 8, "hi", "", "x" * 60, "x" * 60 + "<|im_", "y" * 50 + " ",
    "<|long|>" + "z" * 50, "<|x|>" * 9 + "<|im_end|>",
    "<mask> " + "word " * 15, " word" * 15 + " <mask>", "a" * 48 + "<|im_end|>\n", "<|im_end|>\n" * 6,
    "日本語のテスト" * 10, "\n" + "line\n" * 15, "word " * 10 + "<|im_start|>",
]  # fmt: skip


def reader_of(template, added, parts=None):
    tokenizer = Tokenizer(models.BPE())
    cutter = pre_tokenizers.Split(Regex(min(KNOWN_SPLITS)), "isolated")
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cutter, inner])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIALS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CONTENTS, trainer)
    tokenizer.add_tokens(ADDED[added])
    bundle = PromptBundle(
        tokenizer_json=tokenizer.to_str().encode(),
        chat_templates={"default": template},
        vocab_size=512,
        block_size=4,
        max_model_len=100_000,
    )
    return Reader.of("d", bundle, parts)


def cache_of(parts, max_bytes=2**26):
    return PromptCache(max_bytes=max_bytes) if parts is None else parts.PromptCache(PromptBlocks, max_bytes=max_bytes)


@pytest.fixture(params=["python", "native"])
def parts(request):
    return native() if request.param == "native" else None


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("name", TEMPLATES)
def test_any_conversation_after_any_others_has_the_hashes_of_the_whole(name, added, parts):
    reader, cache, rng = reader_of(TEMPLATES[name], added, parts), cache_of(parts, 200_000), random.Random(name)
    renderer = PromptRenderer(reader.bundle)
    differing = []
    for number in range(300):
        roles = itertools.islice(itertools.cycle(["user", "assistant"]), rng.randint(1, 4))
        messages = [{"role": role, "content": rng.choice(CONTENTS[: 3 + number // 20])} for role in roles]
        keys = ExtraKeys(cache_salt=rng.choice([None, "s"]))
        fields = RoutingFields(model="m", messages=[ChatMessage(**message) for message in messages])

        job = begin_job(reader, cache, fields, keys)
        while job.missing_chars:
            job.advance(500)

        ids = renderer.chat(messages)
        blocks = job.blocks()
        if (blocks.num_tokens, blocks.hashes) != (len(ids), wire_hashes(hash_blocks(ids, 4, keys))):
            differing.append(messages)
    assert differing == []
    assert cache.size_bytes <= 200_000


@pytest.mark.parametrize("added", ["words", "spaced"])
def test_a_message_is_found_at_once_when_its_segments_were_found_before_and_its_shape_is_known(added, parts):
    reader, cache = reader_of(TEMPLATES["chatml"], added, parts), cache_of(parts)
    system = {"role": "system", "content": CONTENTS[0]}
    seen = []
    for number in range(4):
        messages = [ChatMessage(**message) for message in (system, {"role": "user", "content": f"number {number}"})]

        job = begin_job(reader, cache, RoutingFields(model="m", messages=messages), ExtraKeys())

        seen.append((job.num_steps, job.missing_chars))
        while job.missing_chars:
            job.advance(500)

    whole = len("<|im_start|>system\n" + CONTENTS[0])
    rest = len("<|im_end|>\n<|im_start|>user\nnumber 0<|im_end|>\n<|im_start|>assistant\n")
    assert seen == [(1, whole + rest), (4, rest), (4, rest), (2, rest)]
