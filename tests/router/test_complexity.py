"""The score of a request's complexity: each point by itself, bounded, and cheap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.openai.messages import ChatMessage, ContentPart
from quire_contract.openai.requests import RoutingFields
from quire_router.complexity import MAX_LOOKED_AT_CHARS, complexity_of


def chat(*messages, **fields):
    """Messages as (role, content) or as a user's content."""
    pairs = [m if isinstance(m, tuple) else ("user", m) for m in messages]
    return RoutingFields(
        model="m", messages=[ChatMessage(role=role, content=content) for role, content in pairs], **fields
    )


def points(fields, *, is_structured=False):
    return complexity_of(fields, is_structured=is_structured).points


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (chat("Hello there"), {}),
        (None, {}),
        (chat("a" * 4000), {"length": 10.0}),
        (chat(("system", "a" * 4000), "hi"), {"length": 10.0}),
        (chat("a" * 10**6), {"length": 30.0}),
        (chat("one", ("assistant", "two"), "three", "four"), {"turns": 4.0}),
        (chat(*["x"] * 50), {"turns": 10.0}),
        (chat("```py\nx\n``` and ```\ny\n```"), {"code": 10.0}),
        (chat("see ```x"), {"code": 5.0}),
        (chat("```" * 40), {"code": 15.0}),
        (chat("import os\ndef f(): pass"), {"code": 5.0}),
        (chat("class reunion"), {}),
        (chat("what is \\frac{1}{2} in this equation"), {"maths": 6.0}),
        (chat("please PROVE it\nstep by step"), {"reasoning": 6.0}),
        (chat("improve this"), {}),
        (chat(("system", "prove everything step by step"), "hi"), {}),
        (chat("a? b? c?"), {"questions": 2.0}),
        (chat("?" * 100), {"questions": 5.0}),
        (chat("hi", tools=[TOOL] * 3), {"tools": 6.0}),
        (chat("hi", tools=[TOOL] * 30), {"tools": 10.0}),
        (chat("hi", reasoning_effort="high"), {"effort": 15.0}),
        (chat("hi", reasoning_effort="whatever"), {}),
        (
            chat([ContentPart(type="text", text="compare"), ContentPart(type="text", text="evaluate")]),
            {"reasoning": 6.0},
        ),
        (RoutingFields(model="m", prompt="prove it"), {"reasoning": 3.0}),
        (RoutingFields(model="m", prompt=["a", "b? c?"]), {"questions": 1.0}),
        (RoutingFields(model="m", prompt=[1] * 1000), {"length": 10.0}),
        (RoutingFields(model="m", prompt=[[1] * 500, [2] * 500]), {"length": 10.0}),
    ],
)
def test_each_point_has_its_reason_and_its_bound(fields, expected):
    assert points(fields) == expected


def test_an_answer_with_a_form_counts():
    assert points(chat("hi"), is_structured=True) == {"structured": 5.0}


def test_the_score_is_the_sum_of_its_points_and_never_less_than_nothing():
    easy = complexity_of(chat("hi", reasoning_effort="none"), is_structured=False)
    hard = complexity_of(chat("a" * 1000 + " prove", reasoning_effort="high", tools=[TOOL]), is_structured=True)

    assert (easy.score, easy.in_words()) == (0.0, "0; effort=-10")
    assert (hard.score, hard.in_words()) == (27.0, "27; length=2, reasoning=3, tools=2, structured=5, effort=15")
    assert complexity_of(None, is_structured=False).in_words() == "0"


def test_only_the_newest_words_are_looked_at():
    long = "x " * MAX_LOOKED_AT_CHARS

    assert "reasoning" not in points(chat("prove it", long))
    assert points(chat(long, "prove it"))["reasoning"] == 3.0


@given(st.lists(st.tuples(st.sampled_from(["user", "system"]), st.text(max_size=200)), max_size=6))
def test_any_text_has_a_score_within_bounds_that_a_header_can_hold(messages):
    found = complexity_of(chat(*messages), is_structured=False)

    assert 0 <= found.score <= 120
    assert found.in_words().isascii()
    assert "\n" not in found.in_words()
