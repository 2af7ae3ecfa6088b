"""What each format's calls look like, and what is done with texts that only nearly look so."""

import re
from functools import partial
from typing import Any

import pytest

from quire_worker.server.parsing import scripts
from quire_worker.server.parsing.choose import choose_think_tags, choose_tool_format
from quire_worker.server.parsing.feed import Feed
from quire_worker.server.parsing.formats import FORMATS, mistral_id, openai_id
from quire_worker.server.parsing.json_text import MAX_ATOM_CHARS, MAX_DEPTH
from quire_worker.server.parsing.message_parser import ScriptParser, Steps
from quire_worker.server.parsing.parts_sink import PartsSink
from quire_worker.server.parsing.think_script import MISTRAL_THINK, THINK, is_open, think
from quire_worker.server.parts import ReasoningText, ToolArguments, ToolCallBegin

CALL = '{"name": "clock", "arguments": {"a": 1}}'


def test_deepseeks_markers_are_spelled_with_the_signs_of_its_vocabulary() -> None:
    assert scripts.CALLS_BEGIN == "<\uff5ctool\u2581calls\u2581begin\uff5c>"
    assert scripts.SEP == "<\uff5ctool\u2581sep\uff5c>"


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>{CALL}</tool_call>", "", [("clock", '{"a": 1}')]),
        (
            f"Hm.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>\n",
            "Hm.",
            [("clock", '{"a": 1}')] * 2,
        ),
        (f"<tool_call>{CALL}</tool_call>\n\nDone.\n", "Done.", [("clock", '{"a": 1}')]),
        (f"A\n<tool_call>{CALL}</tool_call>\nB", "A\nB", [("clock", '{"a": 1}')]),
        (f"<tool_call>{CALL}}}</tool_call>", "", [("clock", '{"a": 1}')]),
        (f"<tool_call>{CALL[:-1]}</tool_call>", "", [("clock", '{"a": 1}')]),
        (f"<tool_call>{CALL}\n{CALL}</tool_call>", "", [("clock", '{"a": 1}')] * 2),
        (f"<tool_call>{CALL}", "", [("clock", '{"a": 1}')]),
        ('<tool_call>{"name": "clock"}</tool_call>', "", [("clock", "{}")]),
        ('<tool_call>{"name": "clock", "arguments": null}</tool_call>', "", [("clock", "{}")]),
        ('<tool_call>{"arguments": {"a": 1}, "id": 3, "name": "clock"}</tool_call>', "", [("clock", '{"a": 1}')]),
        ('<tool_call>{"type": "function", "name": "nobody", "parameters": {}}</tool_call>', "", [("nobody", "{}")]),
        (
            '<tool_call>{"name": "clock", "arguments": "{\\"a\\": \\"\\\\n\\"}"}</tool_call>',
            "",
            [("clock", '{"a": "\\n"}')],
        ),
        (
            '<tool_call>{"name": "clock", "arguments": "{\\"a\\": \\"\\n\\"}"}</tool_call>',
            "",
            [("clock", '{"a": "\\n"}')],
        ),
        ('<tool_call>{"parameters": "{}", "name": "clock"}</tool_call>', "", [("clock", "{}")]),
        ('<tool_call>{"name": "clock", "arguments": "{1}"}', '<tool_call>{"name": "clock", "arguments": "{1}"}', []),
        ("<tool_call>what?</tool_call>", "<tool_call>what?</tool_call>", []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ('<tool_call>{"name": "clock", "arguments": 3}', '<tool_call>{"name": "clock", "arguments": 3}', []),
        ("a <tool_cal", "a <tool_cal", []),
        (f"<tool_call>x<tool_call>{CALL}</tool_call>", "<tool_call>x", [("clock", '{"a": 1}')]),
    ],
)
def test_hermes(reader: Any, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    message = reader("hermes")(text)

    assert (message.content, list(message.calls)) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "clock", "parameters": {}}', "", [("clock", "{}")]),
        ('\n{"type": "function", "name": "clock", "parameters": {}}', "", [("clock", "{}")]),
        (
            '<|python_tag|>{"name": "clock", "parameters": {}}; {"name": "clock", "parameters": {}}',
            "",
            [("clock", "{}")] * 2,
        ),
        ('Look: <|python_tag|>{"name": "clock", "parameters": {}}', "Look:", [("clock", "{}")]),
        ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
        ('{"name": "clock", "age": 3}', '{"name": "clock", "age": 3}', []),
        ('{"answer": [1, 2]}', '{"answer": [1, 2]}', []),
        ('So: {"name": "clock", "parameters": {}}', 'So: {"name": "clock", "parameters": {}}', []),
    ],
)
def test_llama3_json(reader: Any, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    message = reader("llama3_json")(text)

    assert (message.content, list(message.calls)) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [("clock", '{"a": 1}')] * 2),
        (f"Hm. [TOOL_CALLS]{CALL}", "Hm.", [("clock", '{"a": 1}')]),
        ('[TOOL_CALLS]clock[ARGS]{"a": 1}[TOOL_CALLS]clock{}', "", [("clock", '{"a": 1}'), ("clock", "{}")]),
        ('[TOOL_CALLS]clock[CALL_ID]abc123456[ARGS]{"a": 1}', "", [("clock", '{"a": 1}')]),
        ("[TOOL_CALLS]no name here", "[TOOL_CALLS]no name here", []),
        ("[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
    ],
)
def test_mistral(reader: Any, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    message = reader("mistral_v11")(text)

    assert (message.content, list(message.calls)) == (content, calls)


def test_qwen3_coders_parameters_take_their_types_from_the_schema(reader: Any) -> None:
    text = (
        'I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"New\nYork"\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n<parameter=where>\n[1, 2.5]\n</parameter>\n"
        "<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>"
    )

    message = reader("qwen3_coder")(text)

    assert message.content == "I look."
    assert message.calls == (
        ("get_weather", '{"city": "\\"New\\nYork\\"", "days": 3, "where": [1, 2.5], "other": "7"}'),
    )


def test_qwen3_coders_words_of_python_are_jsons_and_wrong_types_stay_text(reader: Any) -> None:
    text = "<function=get_weather><parameter=days>None</parameter><parameter=where>here</parameter></function>"

    message = reader("qwen3_coder")(text)

    assert message.calls == (("get_weather", '{"days": null, "where": "here"}'),)


def test_a_call_is_told_as_soon_as_its_arguments_begin_and_they_stream(reader: Any) -> None:
    parser = reader("hermes").parser()

    told = [
        list(parser.push(piece))
        for piece in ('<tool_call>{"name": "clock", "arguments": ', '{"a": "b', "c\\", 'n"', "}}")
    ]

    assert told == [
        [],
        [ToolCallBegin(index=0, id="0", name="clock"), ToolArguments(index=0, text='{"a": "b')],
        [ToolArguments(index=0, text="c")],
        [ToolArguments(index=0, text='\\n"')],
        [ToolArguments(index=0, text="}")],
    ]


def test_arguments_that_break_end_the_call_and_the_rest_is_content(reader: Any) -> None:
    message = reader("hermes")('<tool_call>{"name": "clock", "arguments": {"a": oops}}</tool_call>')

    assert (message.content, message.calls, message.is_whole) == ("oops}}</tool_call>", (("clock", '{"a": '),), False)


@pytest.mark.parametrize("end", ['{"a": 12', '{"a": "x\\', '{"a": tru', '{"a": "\\ud83d'])
def test_arguments_that_the_token_limit_cuts_hold_no_half_of_anything(reader: Any, end: str) -> None:
    message = reader("hermes")(f'<tool_call>{{"name": "clock", "arguments": {end}')

    assert message.content == ""
    assert message.calls in ((("clock", '{"a": '),), (("clock", '{"a": "x'),), (("clock", '{"a": "'),))
    assert not message.is_whole


def test_nesting_beyond_the_limit_is_broken_and_harms_nobody(reader: Any) -> None:
    deep = "[" * 100_000

    message = reader("hermes")(f'<tool_call>{{"name": "clock", "arguments": {{"a": {deep}')

    assert message.calls == (("clock", '{"a": ' + "[" * (MAX_DEPTH - 1)),)


def test_without_parallel_calls_only_the_first_is_shown(reader: Any) -> None:
    message = reader("hermes", max_calls=1)(f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>")

    assert (message.content, message.calls, message.is_whole) == ("", (("clock", '{"a": 1}'),), True)


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nYes.\n", False, "Hm.", "Yes.\n"),
        ("Hm.</think>Yes.", True, "Hm.", "Yes."),
        ("Hm. \n", True, "Hm.", ""),
        ("Yes. <think>no</think>", False, "", "Yes. <think>no</think>"),
        ("<think></think>Yes", False, "", "Yes"),
        ("<thin", False, "", "<thin"),
        (" \n x", False, "", " \n x"),
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),
    ],
)
def test_reasoning(reader: Any, text: str, opened: bool, reasoning: str, content: str) -> None:
    message = reader(None, THINK, opened=opened)(text)

    assert (message.reasoning, message.content) == (reasoning, content)


def test_reasoning_goes_before_calls_and_may_speak_of_them(reader: Any) -> None:
    text = f"[THINK]I could <tool_call>[/THINK]\n<tool_call>{CALL}</tool_call>"

    message = reader("hermes", MISTRAL_THINK)(text)

    assert message == ("", (("clock", '{"a": 1}'),), "I could <tool_call>", True)


def test_reasoning_that_is_not_wanted_is_left_out(reader: Any) -> None:
    parts, _ = reader(None, THINK, shows_reasoning=False).parts(["<think>Hm.</think>Yes."])

    assert not any(isinstance(part, ReasoningText) for part in parts)


def test_a_message_to_be_continued_is_inside_reasoning_only_if_its_last_tag_opens() -> None:
    assert is_open("<think>\nFirst", THINK)
    assert not is_open("<think>a</think>b", THINK)
    assert not is_open("plain", THINK)


TOOLS = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "tokens", "expected"),
    [
        (TOOLS + "<tool_call>", (), "hermes"),
        (TOOLS + "<tool_call><function=", (), "qwen3_coder"),
        (TOOLS + "[TOOL_CALLS]", (), "mistral_v3"),
        (TOOLS + "[TOOL_CALLS]", ("[ARGS]",), "mistral_v11"),
        (TOOLS + scripts.CALLS_BEGIN + "```json", (), "deepseek_v3"),
        (TOOLS + scripts.CALLS_BEGIN, (), "deepseek_v31"),
        (TOOLS + '{"name": function name, "parameters": …}', ("<|python_tag|>",), "llama3_json"),
        ("{{ messages }}", ("<|python_tag|>", "<tool_call>"), None),
        (TOOLS, (), None),
    ],
)
def test_the_format_is_found_by_template_and_vocabulary(
    template: str, tokens: tuple[str, ...], expected: str | None
) -> None:
    chosen = choose_tool_format("auto", [template], tokens.__contains__)

    assert (chosen.name if chosen else None) == expected


def test_a_flag_wins_over_the_template() -> None:
    template = [TOOLS + "<tool_call></think>"]

    assert choose_tool_format("none", template, lambda _: False) is None
    assert choose_tool_format("deepseek_v3", template, lambda _: False) is FORMATS["deepseek_v3"]
    assert choose_tool_format("mistral", template, lambda _: True) is FORMATS["mistral_v11"]
    assert choose_think_tags("none", template, lambda _: True) is None
    assert choose_think_tags("auto", template, lambda _: False) is THINK
    assert choose_think_tags("auto", [""], {"[THINK]"}.__contains__) is MISTRAL_THINK
    assert choose_think_tags("deepseek_r1", [""], lambda _: False) is THINK


def test_ids_are_what_templates_accept() -> None:
    assert re.fullmatch(r"call_[0-9a-f]{24}", openai_id())
    assert re.fullmatch(r"[A-Za-z0-9]{9}", mistral_id())
    assert FORMATS["mistral_v3"].new_id is mistral_id


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_waits_between_pieces_stays_short_so_that_reading_takes_time_in_proportion_to_the_text(name: str) -> None:
    feed = Feed()
    sink = PartsSink(openai_id)
    parser = ScriptParser(Steps(partial(think, tags=THINK, opened=True), FORMATS[name].script(())), feed, sink)
    signs = "".join(FORMATS[name].markers) + "<function=f><parameter=c>" + '{"name": "f", "arguments": {"x": '
    text = f"a</think>{signs}" + "".join(f"{sign}a<[{{ \\ud83d 1{number}" for number, sign in enumerate(signs * 8))

    longest = 0
    for character in text:
        parser.push(character)
        longest = max(longest, feed.num_unread)

    assert longest < 2 * MAX_ATOM_CHARS
