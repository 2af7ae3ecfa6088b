"""A model's chat template: Jinja2 in an immutable sandbox, with the conventions that templates for transformers rely on.

The template comes with the model, the messages from anyone: neither may reach the process. Knows no tokens.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

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
        self._environment = environment = _environment(now)
        self._knows_developer = {name: "developer" in source for name, source in sources.items()}
        self._templates = {name: _compile(environment, name, source) for name, source in sources.items()}
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
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
        name = self._name_for(tools)
        template = self._templates[name]
        kwargs = _checked_kwargs(template_kwargs or {})
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
        text = self._run(template, values)
        return _cut_at_mark(text) if continue_final_message else text

    def _name_for(self, tools: object) -> str:
        if tools is not None and "tool_use" in self._templates:
            return "tool_use"
        if "default" in self._templates:
            return "default"
        raise PromptError(
            "This model has no chat template; use /v1/completions, or start the worker with one.", code=CODE_UNSUPPORTED
        )

    def _run(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        room = self._max_chars
        self._environment.start_clock(self._max_render_s)
        try:
            for piece in template.generate(**values):
                self._environment.check_clock()
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise PromptError(f"The chat template wrote more than {self._max_chars} characters.")
        except _TooSlowError:
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


def _compile(environment: jinja2.Environment, name: str, source: str) -> jinja2.Template:
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise PromptError(f"The model's chat template {name!r} is not valid Jinja2: {error}") from None
    template.globals = dict(template.globals)  # Jinja2's chained maps are slow to copy, which every rendering does
    return template


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the assistant wrote, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """`namespace` for templates: holds no underscore names, which the sandbox would not let a template read either."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        own, *rest = args  # so that namespace(self=...) works
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {str(name)[:100]!r}")


class _TemplateDict:
    """`dict` for templates: builds one, offers no attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _TooSlowError(Exception):
    """A template has run for too long. No template can catch it."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a clock: whatever a template looks up, item by item, takes time that is counted. One clock a thread."""

    _local = threading.local()

    def start_clock(self, seconds: float) -> None:
        self._local.end_s = time.monotonic() + seconds

    def check_clock(self) -> None:
        if time.monotonic() > self._local.end_s:
            raise _TooSlowError

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.check_clock()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check_clock()
        return super().getitem(obj, argument)


def _environment(now: Callable[[], datetime]) -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)  # noqa: A006 - templates may name it
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _Namespace
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as models saw it in training."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))
