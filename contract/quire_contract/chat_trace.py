"""What a template writes around the contents of a conversation, found out once and then put together without running it.

    roles system, user; generation prompt   ->   "<|im_start|>system\n" | content 0 | "<|im_end|>\n<|im_start|>user\n" | content 1 | ...

A template runs once over things that stand for the contents (`_Text`), of which nothing can be done unnoticed. Joined to text,
trimmed and written out, they become places in the result. What is asked of them (is it empty, does it begin with "<think>") is answered
from the real contents and noted with its answer. Whatever else a template does with one, however deep in Jinja2, raises, as they are no
strings; then Jinja2 renders such conversations.

Rendering depends on nothing but its arguments, the contents and the date. So a conversation with the same arguments, for whose contents
every question that was noted has the same answer, is written with the same pieces. A trace is worth keeping only if it gives what Jinja2
gave for the conversation that it was made of.

Knows neither tokens nor whose conversation it is; a trace holds no contents.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from quire_contract.chat_sandbox import Sandbox, compile_in, furnish, options

TRACE_CHARS = 1000
"""A trace without its literals."""
MAX_TRACE_S = 0.5
_DAILY = frozenset("aAbBdejmuUVwxyYGhCD%")
"""Directives of strftime that stay for a day."""
_QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "startswith": str.startswith,
    "endswith": str.endswith,
}
_TRIMS: Mapping[str, Callable[..., str]] = {"strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip}
_KEPT_TESTS = (
    *(
        "defined",
        "undefined",
        "none",
        "boolean",
        "false",
        "true",
        "integer",
        "float",
        "mapping",
        "number",
        "odd",
        "even",
        "divisibleby",
    ),
    *("in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le"),
)
_KEPT_FILTERS = (
    *(
        "count",
        "d",
        "default",
        "first",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "items",
        "rejectattr",
        "replace",
        "reverse",
    ),
    *("selectattr", "string", "tojson", "upper"),
)
_UNKNOWN_NODES = (
    nodes.Macro,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.AssignBlock,
    nodes.Block,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
    nodes.ScopedEvalContextModifier,
)
"""Statements that make strings of what was written, which could then be looked into unnoticed."""

Steps = tuple[tuple[Callable[..., str], tuple[Any, ...]], ...]
"""What is done to a content before it is used: methods of str and their arguments."""
Place = tuple[int, Steps]
"""A content by its number, and what is done to it."""


class UntraceableError(Exception):
    """The template does more with a content than is noted here."""


class Trace:
    """How conversations of one shape are written, if their contents answer as is noted."""

    __slots__ = ("_dates", "_frame", "_places", "_questions", "simple")

    def __init__(
        self,
        questions: Sequence[tuple[Callable[..., Any], Place, tuple[Any, ...], bool]],
        dates: Sequence[tuple[str, str]],
        parts: Sequence[str | Place] | None,
    ) -> None:
        """`parts` None: Jinja2 must render these."""
        self._questions = tuple(questions)
        self._dates = tuple(dates)
        self._frame: list[str] | None = None
        self._places: tuple[tuple[int, int, Steps], ...] = ()
        if parts is not None:
            self._frame, self._places = _framed(parts)
        self.simple = self._simple()
        """What is written whatever the contents are like: pieces, and whose contents take every other of them. None: `holds` and `fill`
        must tell."""

    def _simple(self) -> tuple[list[str], tuple[int, ...]] | None:
        if self._questions or self._dates or self._frame is None or any(steps for _, _, steps in self._places):
            return None
        return self._frame, tuple(index for _, index, _ in self._places)

    @property
    def size_chars(self) -> int:
        """Memory it takes, about."""
        return TRACE_CHARS + sum(map(len, self._frame or ())) + 200 * (len(self._places) + len(self._questions))

    def holds(self, contents: Sequence[str], now: Callable[[], datetime]) -> bool:
        """Whether a conversation with these contents is written so."""
        for question, (index, steps), args, answer in self._questions:
            value = contents[index]
            for step, step_args in steps:
                value = step(value, *step_args)
            if question(value, *args) is not answer:
                return False
        return not self._dates or all(now().strftime(format) == date for format, date in self._dates)  # noqa: A001

    def fill(self, contents: Sequence[str]) -> list[str] | None:
        """What is written: literals at even places, contents between them. None: Jinja2 must render it."""
        if self._frame is None:
            return None
        pieces = self._frame.copy()
        for place, index, steps in self._places:
            value = contents[index]
            for step, args in steps:
                value = step(value, *args)
            pieces[place] = value
        return pieces


def _framed(parts: Sequence[str | Place]) -> tuple[list[str], tuple[tuple[int, int, Steps], ...]]:
    frame, places = [""], []
    for part in parts:
        if isinstance(part, str):
            frame[-1] += part
        else:
            places.append((len(frame), *part))
            frame += ("", "")
    return frame, tuple(places)


class _Recorder:
    """What one run of a template asked and wrote."""

    def __init__(self, contents: Sequence[str]) -> None:
        self.contents = contents
        self.questions: dict[tuple[Callable[..., Any], Place, tuple[Any, ...]], bool] = {}
        self.dates: dict[str, str] = {}
        self.is_failed = False
        self._nonce = secrets.token_hex(16)
        self._written: dict[str, tuple[str | Place, ...]] = {}

    def refuse(self, *_: object, **__: object) -> Any:
        """Templates and Jinja2 may catch an exception; that there was one stays known."""
        self.is_failed = True
        raise UntraceableError

    def ask(self, question: Callable[..., Any], place: Place, args: tuple[Any, ...]) -> bool:
        index, steps = place
        value = self.contents[index]
        for step, step_args in steps:
            value = step(value, *step_args)
        answer: bool = question(value, *args)
        self.questions[question, place, args] = answer
        return answer

    def write(self, text: "_Text") -> str:
        mark = f"{self._nonce}{len(self._written)}."
        self._written[mark] = text.parts
        return mark

    def part(self, piece: str) -> tuple[str | Place, ...]:
        """What one piece of output is."""
        found = self._written.get(piece)
        if found is None and self._nonce in piece:
            self.refuse()
        return (piece,) if found is None else found


class _Text:
    """Stands for a content, or for text with contents in it. No string: what is not defined here cannot be done with it."""

    __slots__ = ("parts", "recorder")

    def __init__(self, recorder: _Recorder, parts: tuple[str | Place, ...]) -> None:
        self.recorder = recorder
        self.parts = parts

    def _place(self) -> Place:
        part = self.parts[0]
        return self.recorder.refuse() if len(self.parts) != 1 or isinstance(part, str) else part

    def ask(self, question: Callable[..., Any], *args: object) -> bool:
        """The answer for the content of the conversation at hand; noted."""
        for arg in args:
            if type(arg) is not str and not (type(arg) is tuple and all(type(item) is str for item in arg)):
                self.recorder.refuse()
        return self.recorder.ask(question, self._place(), args)

    def trimmed(self, step: Callable[..., str], *args: object) -> "_Text":
        """The same with white space, or the characters in the argument, taken off."""
        if len(args) > 1 or not all(arg is None or type(arg) is str for arg in args):
            self.recorder.refuse()
        index, steps = self._place()
        return _Text(self.recorder, ((index, (*steps, (step, args))),))

    def method(self, name: str) -> Callable[..., Any]:
        """What a template gets as an attribute."""
        if name in _TRIMS:
            return lambda *args: self.trimmed(_TRIMS[name], *args)
        if name in _QUESTIONS:
            return lambda *args: self.ask(_QUESTIONS[name], *args) if len(args) == 1 else self.recorder.refuse()
        return self.recorder.refuse()  # type: ignore[no-any-return]

    def __add__(self, other: object) -> "_Text":
        return _Text(self.recorder, self.parts + self._parts_of(other))

    def __radd__(self, other: object) -> "_Text":
        return _Text(self.recorder, self._parts_of(other) + self.parts)

    def _parts_of(self, other: object) -> tuple[str | Place, ...]:
        if type(other) is _Text:
            return other.parts
        return (other,) if type(other) is str else self.recorder.refuse()

    def __eq__(self, other: object) -> bool:
        if type(other) is str:
            return self.ask(str.__eq__, other)
        # Not even a number: `1 == content` is no question for a content, but no template asks it either.
        return other is not None and self.recorder.refuse()

    def __contains__(self, other: object) -> bool:
        return self.ask(str.__contains__, other) if type(other) is str else self.recorder.refuse()

    def __bool__(self) -> bool:
        return self.recorder.ask(bool, self._place(), ())

    def __hash__(self) -> int:
        return hash(self.recorder.refuse())

    def _refuse(self, *_: object, **__: object) -> Any:
        return self.recorder.refuse()

    __str__ = __repr__ = __format__ = __len__ = __iter__ = __getitem__ = __reversed__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __int__ = __float__ = __index__ = (
        _refuse
    )
    __bytes__ = __html__ = __call__ = __reduce_ex__ = _refuse


class _CodeGenerator(CodeGenerator):
    """Writes `a ~ b` so that it can be followed."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - as Jinja2 names it
        self.write("environment.joined((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")


class _TracingSandbox(Sandbox):
    """Runs a template over `_Text`."""

    code_generator_class = _CodeGenerator

    def getattr(self, obj: Any, attribute: str) -> Any:
        return obj.method(attribute) if type(obj) is _Text else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        for value in (obj, argument):
            if type(value) is _Text:
                value.recorder.refuse()
        return super().getitem(obj, argument)

    def joined(self, values: Sequence[object]) -> Any:
        """`a ~ b ~ c`."""
        text: Any = ""
        for value in values:
            text = text + (value if type(value) is _Text else str(value))
        return text


def _finalize(value: Any) -> Any:
    return value.recorder.write(value) if type(value) is _Text else value


def _refuse_unknown(*_: object, **__: object) -> Any:
    raise UntraceableError


def _trim(value: Any, chars: str | None = None) -> Any:
    return value.trimmed(str.strip, chars) if type(value) is _Text else str(value).strip(chars)


def _also_of_text(test: Callable[..., Any]) -> Callable[[Any], bool]:
    """A test that every string passes."""
    return lambda value: type(value) is _Text or bool(test(value))


def _tracing_sandbox(strftime_now: Callable[[str], str]) -> _TracingSandbox:
    sandbox = _TracingSandbox(**options(), finalize=_finalize)
    furnish(sandbox, strftime_now)
    filters: Mapping[str, Any] = sandbox.filters
    tests: Mapping[str, Any] = sandbox.tests
    sandbox.filters = dict.fromkeys(filters, _refuse_unknown) | {name: filters[name] for name in _KEPT_FILTERS}
    sandbox.filters["trim"] = _trim
    sandbox.tests = dict.fromkeys(tests, _refuse_unknown) | {name: tests[name] for name in _KEPT_TESTS}
    for name in ("string", "iterable", "sequence"):
        sandbox.tests[name] = _also_of_text(tests[name])
    sandbox.globals["lipsum"] = _refuse_unknown
    return sandbox


class TemplateTracer:
    """Runs the templates of one model for traces."""

    def __init__(self, sources: Mapping[str, str], now: Callable[[], datetime]) -> None:
        """`sources` by name; all compile."""
        self._now = now
        self._lock = threading.Lock()
        self._recorder: _Recorder | None = None
        self._sandbox = sandbox = _tracing_sandbox(self._strftime)
        self._templates = {
            name: compile_in(sandbox, source) for name, source in sources.items() if _is_known(sandbox, source)
        }
        """Those that can be followed."""

    def trace(
        self, name: str, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any], contents: Sequence[str]
    ) -> Trace:
        """How the template `name` writes `messages`, whose contents are `contents`, with the other `values`."""
        recorder = _Recorder(contents)
        with self._lock:
            self._recorder = recorder
            try:
                template = self._templates.get(name)
                parts = None if template is None else self._run(template, recorder, messages, values)
            except Exception:  # noqa: BLE001 - what a template can raise is open; Jinja2 itself is asked in its place
                parts = None
            finally:
                self._recorder = None
        questions = [(*asked, answer) for asked, answer in recorder.questions.items()]
        return Trace(questions, list(recorder.dates.items()), None if recorder.is_failed else parts)

    def _run(
        self,
        template: jinja2.Template,
        recorder: _Recorder,
        messages: Sequence[Mapping[str, Any]],
        values: Mapping[str, Any],
    ) -> list[str | Place]:
        seen = [{**message, "content": _Text(recorder, ((index, ()),))} for index, message in enumerate(messages)]
        self._sandbox.start_clock(MAX_TRACE_S)
        parts: list[str | Place] = []
        for piece in template.generate(**{**values, "messages": seen}):
            self._sandbox.check_clock()
            parts += recorder.part(piece)
        return parts

    def _strftime(self, format: str) -> str:  # noqa: A002 - as strftime names it
        assert self._recorder is not None, "runs in a trace"
        directives = {part[:1] for part in format.split("%")[1:]}
        if type(format) is not str or not directives <= _DAILY:
            self._recorder.refuse()
        return self._recorder.dates.setdefault(format, self._now().strftime(format))


def _is_known(sandbox: Sandbox, source: str) -> bool:
    """Whether a template has only statements that can be followed."""
    tree = sandbox.parse(source)
    return next(tree.find_all(_UNKNOWN_NODES), None) is None and not any(
        loop.recursive for loop in tree.find_all(nodes.For)
    )
