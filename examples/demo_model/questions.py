"""Questions with known answers for the demo model: what it is trained on, and what it is asked afterwards.

Everything is generated from a seed; nothing is downloaded. A question has a *key*, the part of it that must not be
shared between training and held-out questions (the operands of a sum, the list to sort, the phrasing of a fact). A
digest of the key decides the side, so the two sides are disjoint whatever the seeds are. This module must not know
torch, the tokenizer or the model; it imports the standard library only, so that any script can load it by path.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HELD_OUT_IN_256 = 26


class Question(NamedTuple):
    """One user message and the only right answer (compare after `strip()`)."""

    prompt: str
    answer: str
    task: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A generated question before it is given a side: `key` decides between training and held-out."""

    prompt: str
    answer: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """`1 big = factor small`; `max_count` bounds how many of the big unit are asked for."""

    big: str
    small: str
    factor: int
    max_count: int


CONVERSIONS = (
    Conversion(big="km", small="m", factor=1000, max_count=99),
    Conversion(big="m", small="cm", factor=100, max_count=99),
    Conversion(big="cm", small="mm", factor=10, max_count=99),
    Conversion(big="kg", small="g", factor=1000, max_count=99),
    Conversion(big="litres", small="ml", factor=1000, max_count=99),
    Conversion(big="hours", small="minutes", factor=60, max_count=12),
    Conversion(big="minutes", small="seconds", factor=60, max_count=12),
    Conversion(big="days", small="hours", factor=24, max_count=10),
    Conversion(big="weeks", small="days", factor=7, max_count=12),
    Conversion(big="years", small="months", factor=12, max_count=12),
    Conversion(big="feet", small="inches", factor=12, max_count=12),
)
CONVERT_FRAMES = (
    "Convert {n} {a} to {b}.",
    "How many {b} are {n} {a}?",
    "What is {n} {a} in {b}?",
    "{n} {a} in {b}",
    "Express {n} {a} in {b}.",
    "Write {n} {a} as {b}.",
    "How many {b} are there in {n} {a}?",
    "Change {n} {a} into {b}.",
)
ADD_FRAMES = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} = ?",
    "Compute {a} + {b}.",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "What do you get when you add {a} and {b}?",
)
SUBTRACT_FRAMES = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} = ?",
    "Compute {a} - {b}.",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Take {b} away from {a}.",
)
MULTIPLY_FRAMES = (
    "What is {a} * {b}?",
    "{a} * {b}",
    "{a} * {b} = ?",
    "Compute {a} * {b}.",
    "Multiply {a} by {b}.",
    "How much is {a} times {b}?",
    "What is {a} times {b}?",
)
DIVIDE_FRAMES = (
    "What is {a} / {b}?",
    "{a} / {b}",
    "{a} / {b} = ?",
    "Compute {a} / {b}.",
    "Divide {a} by {b}.",
    "How much is {a} divided by {b}?",
    "What is {a} divided by {b}?",
)
SORT_FRAMES = {
    "ascending": (
        "Sort these numbers: {x}",
        "Sort in ascending order: {x}",
        "Sort from smallest to largest: {x}",
        "Put these numbers in order: {x}",
        "Order these numbers from low to high: {x}",
    ),
    "descending": (
        "Sort in descending order: {x}",
        "Sort from largest to smallest: {x}",
        "Order these numbers from high to low: {x}",
    ),
    "alphabetical": (
        "Sort these words: {x}",
        "Sort alphabetically: {x}",
        "Put these words in alphabetical order: {x}",
        "Order these words from A to Z: {x}",
    ),
}
COPY_FRAMES = (
    "Repeat: {x}",
    "Copy this: {x}",
    "Say exactly: {x}",
    "Repeat after me: {x}",
    "Echo: {x}",
    "Write this again: {x}",
    "Copy the text: {x}",
    "Give me back these words: {x}",
)
EXTRACT_FRAMES = (
    "Extract {keys} as JSON: {text}",
    "Give {keys} as JSON. {text}",
    "Turn this into JSON with {keys}: {text}",
    "Read the text and return JSON with {keys}. Text: {text}",
    "Return a JSON object with {keys}: {text}",
)


@cache
def load_bank(name: str) -> Any:
    """The word lists (`words`) or the facts about Quire (`facts`) that lie beside this module as JSON."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))


def pick(rng: random.Random, kind: str) -> str:
    """One entry of a word list."""
    word: str = rng.choice(load_bank("words")[kind])
    return word


def invented_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables that is in no list."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))


def draft_arithmetic(rng: random.Random) -> Draft:
    """Sums and differences up to 99, products and quotients of the table up to 12."""
    sign = rng.choices("+-*/", weights=(4, 4, 2, 2))[0]
    if sign in "+-":
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        result = a + b if sign == "+" else a - b
        frame = rng.choice(ADD_FRAMES if sign == "+" else SUBTRACT_FRAMES)
        key = f"{a}{sign}{b}"
    else:
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        result = a * b
        if sign == "/":
            a, result = result, a
        frame = rng.choice(MULTIPLY_FRAMES if sign == "*" else DIVIDE_FRAMES)
        key = frame.format(a=a, b=b)
    return Draft(prompt=frame.format(a=a, b=b), answer=f"{a} {sign} {b} = {result}", key=key)


def draft_conversion(rng: random.Random) -> Draft:
    """Both directions of each unit pair; small tables are held out by phrasing, decimal shifts by their operand."""
    unit = rng.choice(CONVERSIONS)
    count = rng.randint(2, unit.max_count)
    source, target = (count, unit.big), (count * unit.factor, unit.small)
    if rng.random() < 0.4:
        source, target = target, source
    frame = rng.choice(CONVERT_FRAMES)
    prompt = frame.format(n=source[0], a=source[1], b=target[1])
    key = f"{source} {target}" if unit.max_count > 12 else prompt
    return Draft(prompt=prompt, answer=f"{source[0]} {source[1]} = {target[0]} {target[1]}", key=key)


def draft_sorting(rng: random.Random) -> Draft:
    """Three to six different integers up to 99 in either order, or three to five words from A to Z."""
    order = rng.choices(("ascending", "descending", "alphabetical"), weights=(5, 3, 4))[0]
    if order == "alphabetical":
        items = rng.sample(load_bank("words")["words"], rng.randint(3, 5))
        answer = sorted(items)
    else:
        numbers = rng.sample(range(100), rng.randint(3, 6))
        items = [str(n) for n in numbers]
        answer = [str(n) for n in sorted(numbers, reverse=order == "descending")]
    listed = ", ".join(items)
    return Draft(
        prompt=rng.choice(SORT_FRAMES[order]).format(x=listed), answer=", ".join(answer), key=f"{order} {listed}"
    )


def draft_copying(rng: random.Random) -> Draft:
    """Words, invented words, or a code of capitals and digits, to be given back unchanged."""
    kind = rng.randrange(4)
    if kind == 0:
        text = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(rng.randint(4, 9)))
    elif kind == 1:
        text = " ".join(invented_word(rng) for _ in range(rng.randint(1, 3)))
    else:
        words = [pick(rng, rng.choice(("words", "nouns", "cities", "adjectives"))) for _ in range(rng.randint(2, 7))]
        text = " ".join(words)
    return Draft(prompt=rng.choice(COPY_FRAMES).format(x=text), answer=text, key=text)


def person(rng: random.Random) -> tuple[dict[str, str | int], str]:
    """A sentence about a person and its fields."""
    name = invented_word(rng).title() if rng.random() < 0.3 else pick(rng, "names")
    fields: dict[str, str | int] = {"name": name, "age": rng.randint(18, 90), "city": pick(rng, "cities")}
    sentence = rng.choice(
        (
            "{name} is {age} years old and lives in {city}.",
            "{name}, aged {age}, comes from {city}.",
            "In {city} lives {name}, who is {age}.",
            "My friend {name} moved to {city} at the age of {age}.",
        )
    )
    return fields, sentence


def order(rng: random.Random) -> tuple[dict[str, str | int], str]:
    """A sentence about an order and its fields."""
    fields: dict[str, str | int] = {
        "customer": pick(rng, "names"),
        "item": pick(rng, "items"),
        "quantity": rng.randint(2, 99),
    }
    sentence = rng.choice(
        (
            "{customer} ordered {quantity} {item}.",
            "Please send {quantity} {item} to {customer}.",
            "We sold {quantity} {item} to {customer} today.",
            "{customer} wants to buy {quantity} {item}.",
        )
    )
    return fields, sentence


def server(rng: random.Random) -> tuple[dict[str, str | int], str]:
    """A sentence about a server and its fields."""
    fields: dict[str, str | int] = {
        "host": f"{pick(rng, 'hosts')}-{rng.randint(1, 99)}",
        "port": rng.randint(1000, 9999),
    }
    sentence = rng.choice(
        (
            "The server {host} listens on port {port}.",
            "Connect to {host} on port {port}.",
            "Port {port} is open on {host}.",
            "{host} answers on port {port}.",
        )
    )
    return fields, sentence


def appointment(rng: random.Random) -> tuple[dict[str, str | int], str]:
    """A sentence about an appointment and its fields."""
    fields: dict[str, str | int] = {"event": pick(rng, "events"), "day": pick(rng, "days"), "hour": rng.randint(7, 22)}
    sentence = rng.choice(
        (
            "The {event} is on {day} at {hour}.",
            "On {day} at {hour} we have a {event}.",
            "Come to the {event} on {day} at {hour}.",
            "Our {event} starts at {hour} on {day}.",
        )
    )
    return fields, sentence


def draft_extraction(rng: random.Random) -> Draft:
    """A sentence whose fields are to be returned as JSON, in the order in which the question names them."""
    fields, sentence = rng.choice((person, order, server, appointment))(rng)
    text = sentence.format(**fields)
    names = list(fields)
    keys = ", ".join(names[:-1]) + " and " + names[-1]
    return Draft(prompt=rng.choice(EXTRACT_FRAMES).format(keys=keys, text=text), answer=json.dumps(fields), key=text)


def draft_fact(rng: random.Random) -> Draft:
    """A question about Quire; one phrasing in ten of each fact is held out."""
    bank = load_bank("facts")
    fact = rng.choice(bank["facts"])
    frame = rng.choice(bank["frames"])
    return Draft(
        prompt=frame.format(x=rng.choice(fact["names"])), answer=fact["answer"], key=f"{frame} {fact['answer']}"
    )


TASKS: dict[str, Callable[[random.Random], Draft]] = {
    "arithmetic": draft_arithmetic,
    "conversion": draft_conversion,
    "sorting": draft_sorting,
    "copying": draft_copying,
    "extraction": draft_extraction,
    "facts": draft_fact,
}


def is_held_out(key: str) -> bool:
    """True for about one key in ten, the same in every run and on every machine."""
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT_IN_256


def draw(rng: random.Random, task: str, *, held_out: bool) -> Question:
    """One question of a task from the wanted side."""
    while True:
        draft = TASKS[task](rng)
        if is_held_out(f"{task} {draft.key}") == held_out:
            return Question(rng.choice(load_bank("words")["wrappers"]).format(q=draft.prompt), draft.answer, task)


def held_out_questions(seed: int, count: int, tasks: tuple[str, ...] = tuple(TASKS)) -> Iterator[Question]:
    """`count` different held-out questions, the tasks in turn. None of them can occur in training."""
    rng = random.Random(f"held-out {seed}")
    seen: set[str] = set()
    while len(seen) < count:
        question = draw(rng, tasks[len(seen) % len(tasks)], held_out=True)
        if question.prompt not in seen:
            seen.add(question.prompt)
            yield question


def system_prompt(rng: random.Random, num_sentences: int) -> str:
    """Policies and background notes that change no answer; about 11 tokens a sentence. Few sentences: one of the usual one-liners."""
    if num_sentences < 2:
        return pick(rng, "short_systems")
    sentences = []
    for _ in range(num_sentences):
        kind = rng.random()
        subject = f"{pick(rng, 'adjectives')} {pick(rng, 'nouns')}"
        sentence = f"the {subject} {pick(rng, 'verbs')} the {pick(rng, 'nouns')} {pick(rng, 'places')}."
        if kind < 0.2:
            sentence = pick(rng, "policies")
        elif kind < 0.3:
            sentence = f"Ticket {rng.randint(10, 9999)}: {sentence}"
        elif kind < 0.4:
            person_from = f"{pick(rng, 'names')} from {pick(rng, 'cities')} {pick(rng, 'verbs')}"
            sentence = f"{person_from} {rng.randint(2, 99)} {pick(rng, 'items')} {pick(rng, 'places')}."
        elif kind < 0.5:
            sentence = (
                f"{invented_word(rng)} means {pick(rng, 'adjectives')} {pick(rng, 'words')} and {pick(rng, 'words')}."
            )
        elif kind < 0.55:
            fact: str = rng.choice(load_bank("facts")["facts"])["answer"]
            sentence = fact
        sentences.append(sentence[0].upper() + sentence[1:])
    separator = rng.choice((" ", " ", "\n", "\n- "))
    return pick(rng, "short_systems") + separator + separator.join(sentences)


def is_right(question: Question, reply: str) -> bool:
    """The whole reply must be the answer; surrounding white space does not count."""
    return reply.strip() == question.answer
