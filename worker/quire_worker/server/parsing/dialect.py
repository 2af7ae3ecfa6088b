"""How the served model speaks, and what that means for one request: how its messages are read, and which grammar they must match.

Knows no HTTP and no engine.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_contract.openai.errors import CODE_UNSUPPORTED, invalid
from quire_contract.openai.requests import ChatCompletionRequest
from quire_contract.openai.responses import FinishReason
from quire_contract.openai.tools import ToolUse, tool_use
from quire_worker.server.parsing.feed import Feed
from quire_worker.server.parsing.formats import ToolFormat, call_ids, openai_id
from quire_worker.server.parsing.lark import Lark
from quire_worker.server.parsing.message_parser import ScriptParser, Steps
from quire_worker.server.parsing.parts_sink import PartsSink
from quire_worker.server.parsing.scripts import PYTHON_TAG, plain
from quire_worker.server.parsing.think_script import ThinkTags, is_open, think

TAIL_TOKENS = 16
"""Of a prompt, in which a tag that the template opened stands."""


@dataclasses.dataclass(frozen=True, slots=True)
class Marker:
    """A token that is exactly a marker."""

    token_id: int
    is_special: bool
    """Hidden from clients unless they ask for special tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How one request's messages are read. One parser a choice."""

    new_parser: Callable[[str], ScriptParser]
    """Of a choice whose calls are named after this stem; see `formats.call_ids`."""
    shown_token_ids: frozenset[int]
    """Special tokens that the parser must see in the text."""
    grammar: str | None
    """What the text must match, if tools demand it."""
    use: ToolUse
    reasons: bool
    """Whether the model may reason."""
    ruled_out: tuple[int, ...] = ()
    """Tokens that must not come: with tool_choice none, the one that opens a call. The prompt shows the tools all the same, because
    what is cached of it then stays."""

    def finish_reason(self, parser: ScriptParser, reason: FinishReason) -> FinishReason:
        """What the client is told for the engine's reason: a complete call that the model chose to make is "tool_calls"."""
        if reason == "stop" and parser.calls_are_whole and self.use.mode in ("auto", "required"):
            return "tool_calls"
        return reason


class Dialect:
    """One model's."""

    def __init__(self, tools: ToolFormat | None, tags: ThinkTags | None, markers: Mapping[str, Marker]) -> None:
        """`markers` are those of the formats' markers that are tokens of their own."""
        self.tools = tools
        self.tags = tags
        self._markers = markers

    @property
    def names(self) -> dict[str, str]:
        """For logs."""
        tools = "none" if self.tools is None else self.tools.name
        return {"tool_calls": tools, "reasoning": "none" if self.tags is None else self.tags.begin}

    def reading(
        self,
        body: ChatCompletionRequest,
        prompt_tail: str,
        *,
        content_grammar: str | None = None,
    ) -> Reading | None:
        """For a checked chat whose prompt ends with `prompt_tail`. None where all text is content and nothing constrains it.

        `content_grammar` is what the content must match (Lark); beside tools that may be called the message is one or the other.
        ApiError 400 for tools that this model cannot be read to call.
        """
        use = tool_use(body)
        if use.mode != "none" and self.tools is None:
            raise invalid(
                "tools",
                "this model's chat template shows no way to call tools; start the worker with --tool-call-parser",
                CODE_UNSUPPORTED,
            )
        opened = self.tags is not None and _is_opened(body, prompt_tail, self.tags)
        ruled_out = self._ruled_out(body) if use.mode == "none" else ()
        if use.mode == "none" and self.tags is None and content_grammar is None and not ruled_out:
            return None
        hidden = () if body.skip_special_tokens is False else self._special_markers(use)
        return Reading(
            new_parser=lambda stem: self._parser(use, body, stem, opened=opened, hidden=tuple(hidden)),
            shown_token_ids=frozenset(self._special_markers(use).values()),
            grammar=self._grammar(use, content_grammar, opened=opened),
            use=use,
            reasons=self.tags is not None,
            ruled_out=ruled_out,
        )

    def _ruled_out(self, body: ChatCompletionRequest) -> tuple[int, ...]:
        if self.tools is None or not body.tools:
            return ()
        opening = self._markers.get(self.tools.markers[0])
        return () if opening is None else (opening.token_id,)

    def _special_markers(self, use: ToolUse) -> dict[str, int]:
        texts = self.tools.markers if self.tools is not None and use.mode != "none" else ()
        tags = () if self.tags is None else (self.tags.begin, self.tags.end)
        found = ((text, self._markers.get(text)) for text in (*tags, *texts))
        return {text: marker.token_id for text, marker in found if marker is not None and marker.is_special}

    def _parser(
        self, use: ToolUse, body: ChatCompletionRequest, stem: str, *, opened: bool, hidden: Sequence[str]
    ) -> ScriptParser:
        tools, tags = self.tools, self.tags
        calls = tools is not None and use.mode != "none"
        script = tools.script(use.functions) if tools is not None and calls else plain
        if tags is not None:
            script = Steps(lambda feed, sink: think(feed, sink, tags, opened=opened), script)
        sink = PartsSink(
            call_ids(tools.new_id if tools is not None else openai_id, stem),
            max_calls=None if use.parallel else 1,
            calls_tools=calls,
            shows_reasoning=body.include_reasoning is not False,
        )
        return ScriptParser(script, Feed(hidden), sink)

    def marker_id(self, text: str) -> int | None:
        """Of a marker that llguidance takes for a special token: those, and added tokens in angle brackets."""
        marker = self._markers.get(text)
        if marker is None or not (marker.is_special or (text.startswith("<") and text.endswith(">"))):
            return None
        return marker.token_id

    def _grammar(self, use: ToolUse, content: str | None, *, opened: bool) -> str | None:
        demanded = use.mode in ("required", "named")
        constrained = use.mode == "auto" and (use.restricted or any(function.strict for function in use.functions))
        lark = Lark(self.marker_id)
        if not demanded and not constrained and (content is None or use.mode == "none"):
            if content is None or self.tags is None:
                return content
            return lark.source(f"{lark.reasoning(self.tags, opened=opened)} {lark.nested(content)}")
        assert self.tools is not None, "use is checked"
        before = lark.reasoning(self.tags, opened=opened)
        calls = self.tools.grammar(lark, use.functions, use.parallel)
        opening = "" if calls.opening is None else lark.marker(calls.opening)
        if demanded:
            return lark.source(f"{before} {opening} {calls.rest}")
        if content is not None:
            return lark.source(f"{before} ({opening} {calls.rest} | {lark.nested(content)})")
        if calls.opening is None:
            # A text that does not begin like a call is no call; the tag cannot stand in it where it is a token.
            text = lark.rule(r"/[ \t\r\n]*([^{ \t\r\n](.|\n)*)?/")
            return lark.source(f"{before} ({lark.rule(f'({lark.marker(PYTHON_TAG)})? {calls.rest}')} | {text})")
        return lark.source(f"{before} ({lark.until(calls.opening)} {calls.rest})* TEXT")


PLAIN = Dialect(None, None, {})
"""Of a model whose text is all content."""


def _is_opened(body: ChatCompletionRequest, prompt_tail: str, tags: ThinkTags) -> bool:
    """Whether the model goes on inside reasoning: the template has written the tag, or the message to be continued has."""
    if prompt_tail.rstrip().endswith(tags.begin):
        return True
    if not body.continue_final_message:
        return False
    content: Any = body.messages[-1].content
    if isinstance(content, list):
        content = "\n".join(part.text or "" for part in content)
    return is_open(content or "", tags)
