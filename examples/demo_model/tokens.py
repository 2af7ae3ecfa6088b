"""The demo model's tokenizer and chat template, and how a conversation becomes token ids with a mask over the answers.

The tokenizer is a byte-level BPE (any UTF-8 text round-trips) with every digit a token of its own. It must not know the model.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import questions
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1536
MAX_POSITIONS = 4096
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START, END)
# Contractions; words with the space before them; one digit; runs of punctuation; line breaks; other space.
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{{- '<|im_start|>' + role + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


class Turn(NamedTuple):
    """One message; `answered` marks the assistant's, whose tokens are learnt."""

    role: str
    content: str


def conversation(
    rng: random.Random, num_turns: int, num_sentences: int | None, weights: dict[str, float]
) -> list[Turn]:
    """Training questions with their answers, behind a system prompt of `num_sentences` sentences (None: without one)."""
    turns = [] if num_sentences is None else [Turn("system", questions.system_prompt(rng, num_sentences))]
    for task in rng.choices(list(weights), weights=list(weights.values()), k=num_turns):
        question = questions.draw(rng, task, held_out=False)
        turns += [Turn("user", question.prompt), Turn("assistant", question.answer)]
    return turns


def random_conversation(rng: random.Random, max_sentences: int, weights: dict[str, float]) -> list[Turn]:
    """Four in ten without a system prompt, three with a short and three with a long one; one to eight questions."""
    kind = rng.random()
    num_sentences = None if kind < 0.4 else 1 if kind < 0.7 else rng.randint(2, max_sentences)
    return conversation(rng, rng.choice((1, 1, 2, 3, 5, 8)), num_sentences, weights)


def render(turns: list[Turn]) -> str:
    """The chat template's text, without a generation prompt."""
    return "".join(f"{START}{turn.role}\n{turn.content}{END}\n" for turn in turns)


def train_tokenizer(seed: int, num_conversations: int) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` entries from generated conversations."""
    rng = random.Random(f"tokenizer {seed}")
    weights = dict.fromkeys(questions.TASKS, 1.0)

    def texts() -> Iterator[str]:
        for _ in range(num_conversations):
            yield from (turn.content for turn in random_conversation(rng, 30, weights))

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the tokenizer has."""
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def encode(tokenizer: Tokenizer, turns: list[Turn]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, for each, whether the model must predict it (the assistant's words and its end-of-turn)."""
    end = token_id(tokenizer, END)
    ids: list[int] = []
    learnt: list[bool] = []
    for turn in turns:
        head = tokenizer.encode(f"{START}{turn.role}\n").ids
        body = [*tokenizer.encode(turn.content).ids, end]
        tail = tokenizer.encode("\n").ids
        ids += head + body + tail
        learnt += [False] * len(head) + [turn.role == "assistant"] * len(body) + [False] * len(tail)
    return ids, learnt


def encode_prompt(tokenizer: Tokenizer, turns: list[Turn]) -> list[int]:
    """Token ids of a conversation that ends where the assistant is to speak."""
    ids: list[int] = tokenizer.encode(render(turns) + f"{START}assistant\n").ids
    return ids


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json`, `tokenizer_config.json` with the chat template, and `special_tokens_map.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": END, "pad_token": END_OF_TEXT}
    added = {
        str(tokenizer.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for t in SPECIAL_TOKENS
    }
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": [START],
        "bos_token": None,
        "unk_token": None,
        **named,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    special = {**named, "additional_special_tokens": [START]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
