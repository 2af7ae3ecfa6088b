"""How messages of each format are read: one script a format, all made of the same few steps.

A script tells of a call as soon as it is certain to be one: a name, and arguments that begin as an object. What only looked like a call is
content, markers included. Arguments that break behind that point end the call there, unfinished, and the rest is content.

    hermes       text <tool_call>{"name": …, "arguments": {…}}</tool_call> …            Hermes, Qwen2.5, Qwen3
    llama3_json  {"name": …, "parameters": {…}}; {…}   at the start, or behind <|python_tag|>
    mistral      text [TOOL_CALLS][{"name": …, "arguments": {…}}, …]   or   [TOOL_CALLS]name[ARGS]{…}[TOOL_CALLS]…
    deepseek_v3  text <|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>name ```json {…} ```<|tool▁call▁end|>…
                 or, since V3.1, <|tool▁call▁begin|>name<|tool▁sep|>{…}<|tool▁call▁end|>…
    (qwen3_coder is in `xml_script`)
"""

import re
from collections.abc import Collection

from quire_worker.server.parsing.call_object import Outcome, arguments, call_object
from quire_worker.server.parsing.feed import Feed, Step
from quire_worker.server.parsing.parts_sink import PartsSink

MAX_NAME_CHARS = 256
_NAME = re.compile(r"[\w.:/-]{1,256}")

TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_BAR, _GAP = "\uff5c", "\u2581"
CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEP = (
    f"<{_BAR}tool{_GAP}{words}{_BAR}>"
    for words in (f"calls{_GAP}begin", f"calls{_GAP}end", f"call{_GAP}begin", f"call{_GAP}end", "sep")
)
FENCE, END_FENCE = "```json", "```"


def plain(feed: Feed, sink: PartsSink) -> Step[None]:
    """All that comes is content."""
    while text := (yield from feed.run()):
        sink.content(text)


def content_until(feed: Feed, sink: PartsSink, *markers: str) -> Step[str]:
    """Content up to and including the next marker, which is returned and kept; "" at the end."""
    while text := (yield from feed.run(*markers)):
        sink.content(text)
    feed.keep()
    return (yield from feed.literal(*markers))


def hermes(feed: Feed, sink: PartsSink) -> Step[None]:
    """One object in each pair of tags; several, and a brace too many, are taken too."""
    while (yield from content_until(feed, sink, TOOL_CALL)):
        outcome: Outcome = "done"
        while outcome == "done":
            yield from feed.spaces()
            if (yield from feed.literal(TOOL_CALL_END)):
                feed.forget()
                break
            outcome = yield from call_object(feed, sink)
            if outcome == "done":
                feed.keep()
                yield from feed.spaces()
                yield from feed.literal("}")
        sink.content(feed.kept())


def llama3_json(feed: Feed, sink: PartsSink, known: Collection[str]) -> Step[None]:
    """Objects at the start count as calls only if they name a function of the request, because a model may also be asked for JSON."""
    feed.keep()
    yield from feed.spaces()
    yield from feed.literal(PYTHON_TAG)
    may_begin = True
    while may_begin:
        yield from _objects(feed, sink, known)
        sink.content(feed.kept())
        may_begin = bool((yield from content_until(feed, sink, PYTHON_TAG)))


def _objects(feed: Feed, sink: PartsSink, known: Collection[str]) -> Step[None]:
    """Calls, one behind the other."""
    yield from feed.spaces()
    while (yield from call_object(feed, sink, known)) == "done":
        feed.keep()
        yield from feed.spaces()
        yield from feed.literal(";")
        yield from feed.spaces()
        yield from feed.literal(PYTHON_TAG)
        yield from feed.spaces()


def mistral(feed: Feed, sink: PartsSink) -> Step[None]:
    """A list of objects, or a name and its arguments, behind each marker."""
    while (yield from content_until(feed, sink, TOOL_CALLS)):
        yield from feed.spaces()
        first = yield from feed.peek()
        if first == "[":
            yield from feed.literal("[")
            yield from _list(feed, sink)
        elif first == "{":
            yield from call_object(feed, sink)
        else:
            yield from _named(feed, sink)
        sink.content(feed.kept())


def _list(feed: Feed, sink: PartsSink) -> Step[None]:
    yield from feed.spaces()
    while (yield from call_object(feed, sink)) == "done":
        feed.keep()
        yield from feed.spaces()
        if not (yield from feed.literal(",")):
            if (yield from feed.literal("]")):
                feed.forget()
            return
        yield from feed.spaces()


def _named(feed: Feed, sink: PartsSink) -> Step[None]:
    name = (yield from feed.text_until(ARGS, CALL_ID, "{", limit=MAX_NAME_CHARS)) or ""
    if not _NAME.fullmatch(name.strip()):
        return
    if (yield from feed.literal(CALL_ID)):
        yield from feed.text_until(ARGS, "{", limit=MAX_NAME_CHARS)
    yield from feed.literal(ARGS)
    yield from feed.spaces()
    yield from arguments(feed, sink, name.strip())


def deepseek(feed: Feed, sink: PartsSink) -> Step[None]:
    """Both forms: behind the separator stand the arguments, or the name and then fenced arguments."""
    while marker := (yield from content_until(feed, sink, CALLS_BEGIN, CALL_BEGIN)):
        outcome: Outcome = "done"
        while outcome == "done":
            if marker == CALLS_BEGIN:
                yield from feed.spaces()
                marker = yield from feed.literal(CALL_BEGIN, CALLS_END)
            if marker != CALL_BEGIN:
                if marker == CALLS_END:
                    feed.forget()
                break
            outcome = yield from _deepseek_call(feed, sink)
            marker = CALLS_BEGIN
        sink.content(feed.kept())


def _deepseek_call(feed: Feed, sink: PartsSink) -> Step[Outcome]:
    name = yield from feed.text_until(SEP, limit=MAX_NAME_CHARS)
    if name is None:
        return "none"
    yield from feed.literal(SEP)
    yield from feed.spaces()
    if (yield from feed.peek()) != "{":
        name = (yield from feed.text_until("\n", END_FENCE, "{", limit=MAX_NAME_CHARS)) or ""
        yield from feed.spaces()
        yield from feed.literal(FENCE, END_FENCE)
        yield from feed.spaces()
    if not _NAME.fullmatch(name.strip()):
        return "none"
    outcome = yield from arguments(feed, sink, name.strip())
    if outcome == "done":
        feed.keep()
        yield from feed.spaces()
        yield from feed.literal(END_FENCE)
        yield from feed.spaces()
        if (yield from feed.literal(CALL_END)):
            feed.keep()
    return outcome
