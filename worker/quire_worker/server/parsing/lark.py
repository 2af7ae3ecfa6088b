"""Grammars as text in llguidance's dialect of Lark (https://github.com/guidance-ai/llguidance, docs/syntax.md).

Markers that the vocabulary has as tokens of their own must be written as those tokens; llguidance never matches a string with them.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from quire_worker.server.parsing.think_script import ThinkTags

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
"""As chat templates print JSON, and without white space that could go on for ever."""
_TEXT = r"TEXT: /(.|\n)*/"
_MARGIN = r"MARGIN: /[ \t\r\n]*/"


class Lark:
    """Rules that grow; names are unique by a counter."""

    def __init__(self, marker_id: Callable[[str], int | None]) -> None:
        """`marker_id` is the id of a marker that is a token of its own."""
        self._marker_id = marker_id
        self._lines = [_TEXT, _MARGIN]
        self._num_rules = 0

    def source(self, start: str) -> str:
        """The grammar that begins with the expression `start`."""
        return "\n".join((f"start: {start}", *self._lines)) + "\n"

    def rule(self, expression: str, options: str = "") -> str:
        """The name of a new rule."""
        name = f"r{self._num_rules}"
        self._num_rules += 1
        self._lines.append(f"{name}{options}: {expression}")
        return name

    def marker(self, text: str) -> str:
        """A marker, as a token if it is one."""
        token_id = self._marker_id(text)
        return quoted(text) if token_id is None else f"<[{token_id}]>"

    def until(self, text: str, max_chars: int | None = None) -> str:
        """Any text, of at most `max_chars` characters, up to and including a marker's first appearance."""
        before = "TEXT" if max_chars is None else rf"/(.|\n){{0,{max_chars}}}/"
        token_id = self._marker_id(text)
        if token_id is not None:
            return self.rule(f"{before} <[{token_id}]>")
        return self.rule(f"{before} {quoted(text)}", "[lazy]")

    def schema(self, schema: Mapping[str, Any], *, lenient: bool) -> str:
        """JSON that matches a schema; with `lenient`, keywords that llguidance does not know are passed over."""
        told = {**schema, "x-guidance": {**_JSON_STYLE, "lenient": lenient}}
        return self.rule(f"%json {_ascii_json(told)}")

    def nested(self, source: str) -> str:
        """A whole grammar as one rule."""
        return self.rule(f"%lark {{\n{source}\n}}")

    def reasoning(self, tags: ThinkTags | None, *, opened: bool) -> str:
        """What may come before the answer: reasoning that has begun in the prompt, or that the model may begin."""
        if tags is None:
            return ""
        thought = f"{self.until(tags.end)} MARGIN"
        return thought if opened else f"({self.marker(tags.begin)} {thought})?"


def quoted(text: str) -> str:
    """A string in Lark's quotes."""
    return _ascii_json(text)


def _ascii_json(value: Any) -> str:
    """JSON of printable ASCII only: a grammar's lexer stumbles over some other characters."""
    return json.dumps(value).replace("\x7f", "\\u007f")
