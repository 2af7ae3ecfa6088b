"""A model's chat template: from a conversation to the model's text, or to a refusal that says why.

Jinja2 renders it in a sandbox (`chat_sandbox`); conversations whose shape has come before are put together without it (`chat_shapes`).
Knows no tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2

from quire_contract.chat_sandbox import TooSlowError, compile_in, new_sandbox
from quire_contract.chat_shapes import Shape, ShapeMemory, shape_of
from quire_contract.openai.errors import CODE_INVALID_VALUE, CODE_UNSUPPORTED, ApiError

MAX_RENDERED_CHARS = 32 * 1024 * 1024
MAX_RENDER_S = 3.0
"""Real conversations take milliseconds; a template may take quadratic time over what a client has made up."""
_CONTINUE_MARK = "\ue000quire:continue\ue001"
# What a template can raise besides its own errors: it is an expression over a client's data.
_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})


class PromptError(ApiError):
    """The prompt cannot be made from the request: HTTP 400."""

    def __init__(self, message: str, param: str = "messages", code: str = CODE_INVALID_VALUE) -> None:
        super().__init__(400, message, param=param, code=code)


class ChatTemplate:
    """The templates of one model, compiled once; safe to use from several threads."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
        max_chars: int = MAX_RENDERED_CHARS,
        max_render_s: float = MAX_RENDER_S,
    ) -> None:
        """`sources` by name, see PromptBundle; `now` dates prompts whose template asks for the date.

        PromptError if a source does not compile.
        """
        self._sandbox = new_sandbox(now)
        self._knows_developer = {name: "developer" in source for name, source in sources.items()}
        self._templates = {name: self._compile(name, source) for name, source in sources.items()}
        self.shapes = ShapeMemory(sources, now)
        """How conversations are written that need no Jinja2."""
        self._special_tokens = dict(special_tokens)
        self.max_chars = max_chars
        """Of what a conversation may be written as."""
        self._max_render_s = max_render_s

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model's text. PromptError if the template refuses it."""
        return "".join(
            self.pieces(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=template_kwargs,
            )
        )

    def pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """`render` in pieces: what the template wrote at even places, contents of messages between them. One piece, where that is not
        known. What the template wrote is the same string each time that it writes the same."""
        name = self._name_for(tools)
        kwargs = _checked_kwargs(template_kwargs) if template_kwargs else {}
        shape = (
            shape_of(name, messages, add_generation_prompt, kwargs)
            if tools is None and not continue_final_message
            else None
        )
        contents = () if shape is None else [message["content"] for message in messages]
        known = None if shape is None else self.known_pieces(shape, contents)
        if known is not None:
            return known
        seen = [dict(message) for message in messages]
        if not self._knows_developer[name]:
            _rename_developer(seen)
        if continue_final_message:
            _mark_final(seen, add_generation_prompt)
        values = {
            **self._special_tokens,
            **kwargs,
            "messages": seen,
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(self._templates[name], values)
        if shape is not None:
            self.shapes.learn(shape, seen, values, contents, text)
        return [_cut_at_mark(text) if continue_final_message else text]

    def known_pieces(self, shape: Shape, contents: Sequence[str]) -> list[str] | None:
        """As `pieces` for messages of a shape that has come before. None: `pieces` must tell."""
        known = self.shapes.pieces(shape, contents)
        return None if known is None or sum(map(len, known)) > self.max_chars else known

    def _name_for(self, tools: object) -> str:
        if tools is not None and "tool_use" in self._templates:
            return "tool_use"
        if "default" in self._templates:
            return "default"
        raise PromptError(
            "This model has no chat template; use /v1/completions, or start the worker with one.", code=CODE_UNSUPPORTED
        )

    def _compile(self, name: str, source: str) -> jinja2.Template:
        try:
            return compile_in(self._sandbox, source)
        except jinja2.TemplateError as error:
            raise PromptError(f"The model's chat template {name!r} is not valid Jinja2: {error}") from None

    def _run(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        room = self.max_chars
        self._sandbox.start_clock(self._max_render_s)
        try:
            for piece in template.generate(**values):
                self._sandbox.check_clock()
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise PromptError(f"The chat template wrote more than {self.max_chars} characters.")
        except TooSlowError:
            raise PromptError(
                f"The chat template takes longer than {self._max_render_s:g} s over these messages; send fewer."
            ) from None
        except jinja2.TemplateError as error:
            raise PromptError(f"The chat template refused the messages: {str(error)[:500]}") from None
        except _TEMPLATE_FAULTS as error:
            what = f"{type(error).__name__}: {str(error)[:200]}"
            raise PromptError(f"The chat template cannot render these messages ({what}).") from None
        return "".join(pieces)


def _checked_kwargs(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    taken = sorted(_RESERVED & kwargs.keys())
    if taken:
        raise PromptError(f"chat_template_kwargs: {taken[0]!r} cannot be set here.", "chat_template_kwargs")
    return kwargs


def _rename_developer(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        if message.get("role") == "developer":
            message["role"] = "system"


def _mark_final(messages: list[dict[str, Any]], add_generation_prompt: bool) -> None:
    if add_generation_prompt:
        raise PromptError(
            "continue_final_message cannot be combined with add_generation_prompt.", "continue_final_message"
        )
    if not messages or not isinstance(messages[-1].get("content"), str):
        raise PromptError("continue_final_message needs a last message with text.", "continue_final_message")
    content: str = messages[-1]["content"]
    messages[-1]["content"] = content + _CONTINUE_MARK + " "


def _cut_at_mark(text: str) -> str:
    """Text up to the mark after the last message; trimmed at its end if the template trims contents (the space after the mark is gone)."""
    start = text.rfind(_CONTINUE_MARK)
    if start < 0:
        raise PromptError(
            "This model's chat template drops the last message, so it cannot be continued.", "continue_final_message"
        )
    kept = text[:start]
    is_trimmed = text[start + len(_CONTINUE_MARK) : start + len(_CONTINUE_MARK) + 1] != " "
    return kept.rstrip() if is_trimmed else kept
