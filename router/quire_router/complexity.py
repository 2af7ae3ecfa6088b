"""How complex a request is: a score that routes with `complexity` compare with their steps. Pure, linear, and every point has a name.

    length      1 for each 100 tokens of the whole prompt (4 characters are one), at most 30
    turns       2 for each message of the user after the first, at most 10
    code        5 for each fenced block, at most 15; 5 for lines that look like code without one
    maths       3 for each kind of formula or word of CALCULATING, at most 15
    reasoning   3 for each phrase of REASONING, at most 15
    questions   1 for each question mark after the first, at most 5
    tools       2 for each tool that may be called, at most 10
    structured  5 if the answer must match a schema or grammar
    effort      what the client asks for itself: -10 (none) to 20 (max)

Marks and phrases are sought in what the user wrote, the newest messages first, in at most MAX_LOOKED_AT_CHARS characters. They are
English; the other points hold in any language. The sum is never less than 0; 0 to 10 is small talk, above 30 a task.
"""

from collections.abc import Iterable, Sequence

import msgspec

from quire_contract.openai.requests import RoutingFields

MAX_LOOKED_AT_CHARS = 32 * 1024
CHARS_PER_TOKEN = 4
TOKENS_PER_POINT = 100
FENCE = "```"
CODE = ("def ", "class ", "import ", "#include", "function ", "return ", "select ", "=> ", "();", "public ", "const ")
CALCULATING = (
    "\\frac", "\\sum", "\\int", "\\begin{", "$$", "∑", "∫", "√", "∀", "∃",
    " equation", " integral", " derivative", " theorem", " matrix", " probability", " polynomial", " calculate",
)  # fmt: skip
REASONING = (
    " prove", " step by step", " explain why", " analyse", " analyze", " compare", " trade-off", " tradeoff", " derive", " evaluate",
    " debug", " refactor", " optimis", " optimiz", " architect", " strategy", " root cause", " pros and cons", " in detail",
)  # fmt: skip
EFFORT = {"none": -10.0, "minimal": -5.0, "low": 0.0, "medium": 5.0, "high": 15.0, "xhigh": 20.0, "max": 20.0}


class Complexity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The score, and the points that it is the sum of."""

    score: float
    points: dict[str, float]
    """Without those that are 0."""

    def in_words(self) -> str:
        """As a header's value: "23; length=3, code=15, effort=5"."""
        reasons = ", ".join(f"{name}={value:g}" for name, value in self.points.items())
        return f"{self.score:g}; {reasons}" if reasons else f"{self.score:g}"


def complexity_of(fields: RoutingFields | None, *, is_structured: bool) -> Complexity:
    """Of a call's prompt. None: it has none, which is as simple as can be."""
    if fields is None:
        return Complexity(score=0.0, points={})
    num_chars, num_turns, text = _text_of(fields)
    points = {
        "length": min(30.0, float(num_chars // (CHARS_PER_TOKEN * TOKENS_PER_POINT))),
        "turns": min(10.0, 2.0 * max(0, num_turns - 1)),
        "code": _code_points(text),
        "maths": min(15.0, 3.0 * _num_found(CALCULATING, text)),
        "reasoning": min(15.0, 3.0 * _num_found(REASONING, text)),
        "questions": min(5.0, max(0.0, text.count("?") - 1.0)),
        "tools": min(10.0, 2.0 * len(fields.tools or ())),
        "structured": 5.0 if is_structured else 0.0,
        "effort": EFFORT.get(fields.reasoning_effort or "", 0.0),
    }
    score = max(0.0, sum(points.values()))
    return Complexity(score=score, points={name: value for name, value in points.items() if value})


def _code_points(text: str) -> float:
    num_blocks = (text.count(FENCE) + 1) // 2
    if num_blocks:
        return min(15.0, 5.0 * num_blocks)
    return 5.0 if _num_found(CODE, text) >= 2 else 0.0


def _num_found(marks: Iterable[str], text: str) -> int:
    return sum(mark in text for mark in marks)


def _text_of(fields: RoutingFields) -> tuple[int, int, str]:
    """(characters of the whole prompt, messages of the user, what the user wrote: in lower case, spaces for line ends, with bounds)."""
    pieces: list[str] = []
    num_chars = num_turns = 0
    left = MAX_LOOKED_AT_CHARS
    for is_users, text in _newest_first(fields):
        num_chars += len(text)
        num_turns += is_users
        if is_users and left > 0:
            pieces.append(text[:left])
            left -= len(text)
    joined = " ".join(["", *pieces])
    return num_chars + _token_chars(fields.prompt), num_turns, joined.lower().replace("\n", " ")


def _newest_first(fields: RoutingFields) -> Iterable[tuple[bool, str]]:
    if isinstance(fields.prompt, str):
        yield True, fields.prompt
    elif isinstance(fields.prompt, list):
        yield True, " ".join(item for item in fields.prompt if isinstance(item, str))
    for message in reversed(fields.messages or ()):
        content = message.content
        if isinstance(content, list):
            content = " ".join(part.text or "" for part in content)
        yield message.role == "user", content or ""


def _token_chars(prompt: str | Sequence[str | int | list[int]] | None) -> int:
    """Token ids as the characters that they stand for."""
    if prompt is None or isinstance(prompt, str):
        return 0
    return CHARS_PER_TOKEN * sum(len(i) if isinstance(i, list) else isinstance(i, int) for i in prompt)
