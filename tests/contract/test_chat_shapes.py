"""Conversations whose shape has come before are written as the template writes them, whatever their contents are."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_contract.chat_shapes import (
    MAX_ARGUMENT_CHARS,
    MAX_ARGUMENTS,
    MAX_MEMORY_CHARS,
    MAX_TRACES,
    ShapeMemory,
    shape_of,
)
from quire_contract.chat_template import ChatTemplate, PromptError
from tests.contract.test_chat_template import TEMPLATES, TOKENS

HOSTILE = [
    "", " ", "\n", "  x  ", "x", "<think>", "</think>", "<think>\nhm\n</think>\n\nb", "<tool_response>", "</tool_response>", "{{ 7 * 7 }}",
    "{% raw %}", "<|im_end|>", "\ue000quire:continue\ue001", "\x00", "日本語?", "%s", "5", "None", "x" * 300,
]  # fmt: skip
CONTENTS = st.sampled_from(HOSTILE) | st.text(max_size=12)
ROLES = st.sampled_from(
    [
        ["user"],
        ["system", "user"],
        ["developer", "user"],
        ["user", "assistant", "user"],
        ["system", "user", "assistant", "user", "assistant", "user"],
        ["tool"],
        ["user", "assistant"],
    ]
)
TRACED = {
    **TEMPLATES,
    "dated": "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}",
    "joined by tilde": "{{ bos_token ~ messages[0]['role'] ~ 5 ~ messages[0]['content'] ~ loop }}",
    "kept in a namespace": "{% set ns = namespace(a='') %}{% for m in messages %}{% set ns.a = ns.a + m.content %}{% endfor %}{{ ns.a }}",
    "told by emptiness": "{% for m in messages %}{{ m.content or 'nothing' }}{{ '' if m.content else '!' }}{% endfor %}",
    "told by what it is": "{% for m in messages %}{{ m.content in ['x', '5'] }}{{ m.content != '' }}{{ 'x' == m.content }}{{ m.content }}"
    "{% endfor %}",
    "trimmed twice": "{% for m in messages %}{{ m.content.strip('x').lstrip() | trim }}{{ m.content.rstrip().endswith('k>') }}{% endfor %}",
    "asked what it is": "{% for m in messages %}{% if m.content is string and m.content is not mapping %}{{ m.content }}{% endif %}"
    "{% endfor %}",
}
LOOKED_INTO = {
    "length": "{{ messages[0].content | length }}",
    "length in a block": "{% set x %}{{ messages[0].content }}{% endset %}{{ x | length }}",
    "length in a macro": "{% macro f(m) %}{{ m.content }}{% endmacro %}{{ f(messages[0]) | length }}",
    "length in a recursive loop": "{% for m in messages recursive %}{{ m.content if m.role else '' }}"
    "{{ loop([{'content': 'a' + m.content}]) | length if m.role }}{% endfor %}",
    "number": "{{ messages[0].content | int }}",
    "upper": "{{ messages[0].content | upper }}",
    "first": "{{ messages[0].content[:1] }}",
    "each": "{% for c in messages[0].content %}{{ c }}.{% endfor %}",
    "json": "{{ messages | tojson }}",
    "in a string": "{{ messages[0].content in 'axb' }}",
    "a key": "{{ {'x': 'known'}[messages[0].content] }}",
    "another": "{{ messages[0].content == messages[-1].content }}",
    "split": "{{ messages[0].content.split('</think>')[-1] }}",
    "formatted": "{{ '%-5s|' % messages[0].content }}{{ '{:>4}|'.format(messages[0].content) }}",
    "repeated": "{{ messages[0].content * 2 }}",
    "compared": "{{ messages[0].content < 'm' }}",
    "sorted": "{{ messages | map(attribute='content') | join(',') }}{{ messages | selectattr('content', 'eq', 'x') | list | length }}",
    "replaced": "{{ messages[0].content | replace('x', 'y') }}",
    "whole message": "{{ messages[0] }}",
    "default": "{{ messages[0].content | default('none', true) }}",
    "changed": "{% for m in messages %}{{ loop.changed(m.content) }}{% endfor %}",
    "titled": "{{ (messages[0].content ~ ' b') | title }}",
    "trimmed together": "{{ (' ' + messages[0].content + ' ') | trim }}",
    "by the clock": "{{ strftime_now('%H:%M:%S.%f')[:3] }}{{ messages[0].content }}",
}
ALL = TRACED | LOOKED_INTO


def outcome(template: ChatTemplate, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        return template.render(messages, **options)
    except PromptError as error:
        return f"refused: {error.message}"


def talk(roles: list[str], contents: list[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("name", ALL)
def test_a_shape_that_is_known_is_written_as_jinja_writes_it(name: str) -> None:
    known, forgetful = (ChatTemplate({"default": ALL[name]}, TOKENS) for _ in range(2))

    @settings(max_examples=40, deadline=None)
    @given(
        roles=ROLES, contents=st.lists(CONTENTS, min_size=6, max_size=6), prompt=st.booleans(), thinking=st.booleans()
    )
    def check(roles: list[str], contents: list[str], prompt: bool, thinking: bool) -> None:
        options = {"add_generation_prompt": prompt, "template_kwargs": {"enable_thinking": True} if thinking else None}
        for turn in (contents, contents[::-1], contents):
            messages = talk(roles, turn)
            forgetful.shapes.traces.clear()
            expected = outcome(forgetful, messages, **options)

            assert outcome(known, messages, **options) == expected

    check()


@pytest.mark.parametrize("name", TRACED)
def test_templates_that_write_contents_as_they_are_need_no_jinja_the_third_time(name: str) -> None:
    template, messages = ChatTemplate({"default": TRACED[name]}, TOKENS), talk(["user"], ["  How are you? "])

    pieces = [template.pieces(messages) for _ in range(3)]

    assert [len(written) > 1 for written in pieces] == [False, False, True]
    assert len({"".join(written) for written in pieces}) == 1


@pytest.mark.parametrize("name", LOOKED_INTO)
def test_templates_that_look_into_contents_stay_with_jinja(name: str) -> None:
    template = ChatTemplate({"default": LOOKED_INTO[name]}, TOKENS)
    conversations = [talk(["user", "user"], [content, "b"]) for content in ("x", "", "5", "x y", "x")]

    texts = [[outcome(template, messages) for messages in conversations] for _ in range(3)]

    fresh = [outcome(ChatTemplate({"default": LOOKED_INTO[name]}, TOKENS), messages) for messages in conversations]
    assert texts == [fresh] * 3


def test_what_a_template_writes_of_a_shape_is_the_same_string_each_time() -> None:
    template = ChatTemplate({"default": TEMPLATES["qwen"]}, TOKENS)

    written = [template.pieces(talk(["system", "user"], [content, "b"])) for content in "xyzw"][2:]

    assert written[0] == [
        "<|im_start|>system\n",
        "z",
        "<|im_end|>\n<|im_start|>user\n",
        "b",
        "<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert all(one is other for one, other in zip(written[0][::2], written[1][::2], strict=True))


def test_a_date_is_written_anew_when_the_day_has_changed() -> None:
    days = [datetime(2026, 2, 3)]
    template = ChatTemplate({"default": TRACED["dated"]}, TOKENS, now=lambda: days[-1])
    messages = talk(["user"], ["hi"])

    before = [template.render(messages) for _ in range(3)]
    days.append(days[-1] + timedelta(days=1))
    after = [template.render(messages) for _ in range(3)]

    assert (before, after) == (["03 Feb 2026 hi"] * 3, ["04 Feb 2026 hi"] * 3)
    assert len(template.pieces(messages)) == 3


def test_output_is_bounded_whether_or_not_the_shape_is_known() -> None:
    template = ChatTemplate({"default": TEMPLATES["chatml"]}, TOKENS, max_chars=200)
    for _ in range(3):
        template.render(talk(["user"], ["hi"]))

    with pytest.raises(PromptError, match="more than 200 characters"):
        template.render(talk(["user"], ["x" * 200]))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "name": "n"},
        {"role": "user", "content": None},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"content": "x", "role": "user"},
    ],
)
def test_only_plain_messages_have_a_shape(message: dict[str, Any]) -> None:
    plain = talk(["user"], ["x"])

    shapes = [shape_of("default", messages, True, {}) for messages in (plain, [*plain, message])]

    assert shapes == [("default", True, "user"), None]


@pytest.mark.parametrize(
    ("one", "other"), [({"a": True}, {"a": "True"}), ({"a": None}, {}), ({"a": False}, {"b": False})]
)
def test_other_arguments_are_another_shape(one: dict[str, Any], other: dict[str, Any]) -> None:
    shapes = [shape_of("default", talk(["user"], ["x"]), True, kwargs) for kwargs in (one, other, {"a": 1}, {"a": []})]

    assert shapes[0] != shapes[1]
    assert shapes[2:] == [None, None]


def test_arguments_that_would_fill_the_memory_have_no_shape() -> None:
    few: dict[str, Any] = {f"a{number}": "x" * MAX_ARGUMENT_CHARS for number in range(MAX_ARGUMENTS)}
    memory, messages = ShapeMemory({"default": "x"}, datetime.now), talk(["user"], ["x"])

    shapes = [
        shape_of("default", messages, True, kwargs)
        for kwargs in (few, {**few, "one more": True}, {"x" * (MAX_ARGUMENT_CHARS + 1): True})
    ]
    assert shapes[0] is not None
    memory.learn(shapes[0], messages, {}, ["x"], "x")

    assert shapes[1:] == [None, None]
    assert memory.size_chars > 2 * MAX_ARGUMENTS * MAX_ARGUMENT_CHARS


def test_memory_is_bounded_by_the_answers_and_by_the_shapes() -> None:
    source = (
        "{% for m in messages %}{% for c in 'abcdefgh' %}{{ c in m.content }}{% endfor %}{% endfor %}" + "x" * 200_000
    )
    memory, messages = ShapeMemory({"default": source}, datetime.now), talk(["user"], ["x"])
    plain = ChatTemplate({"default": source}, {})
    sizes = []
    for number in range(240):
        shape = shape_of("default", messages, True, {"a": str(number // 40)})
        contents = ["".join(letter for bit, letter in enumerate("abcdefgh") if number >> bit & 1)]
        assert shape is not None
        for _ in range(2):
            memory.learn(shape, messages, {}, contents, plain.render(talk(["user"], contents)))
        sizes.append(memory.size_chars)

    assert MAX_TRACES * 200_000 < max(sizes) <= MAX_MEMORY_CHARS
    assert any(after < before for before, after in pairwise(sizes))
    assert memory.pieces(shape, contents) is not None
