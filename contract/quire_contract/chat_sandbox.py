"""Where chat templates run: Jinja2's immutable sandbox with a clock, and with what templates for transformers rely on.

The template comes with the model, the messages from anyone: neither may reach the process. Knows no messages.
"""

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


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


class TooSlowError(Exception):
    """A template has run for too long. No template can catch it."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox with a clock: whatever a template looks up, item by item, takes time that is counted. One clock a thread."""

    _local = threading.local()

    def start_clock(self, seconds: float) -> None:
        """What this thread renders next may take so long."""
        self._local.end_s = time.monotonic() + seconds

    def check_clock(self) -> None:
        """TooSlowError once the time is over."""
        if time.monotonic() > self._local.end_s:
            raise TooSlowError

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.check_clock()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check_clock()
        return super().getitem(obj, argument)


def furnish(sandbox: Sandbox, strftime_now: Callable[[str], str]) -> None:
    """Give the sandbox the filters and functions that templates expect."""
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = strftime_now
    sandbox.globals["dict"] = _TemplateDict()
    sandbox.globals["namespace"] = _Namespace


def new_sandbox(now: Callable[[], datetime]) -> Sandbox:
    """One that dates prompts by `now`."""
    sandbox = Sandbox(**options())
    furnish(sandbox, lambda format: now().strftime(format))  # noqa: A006 - templates may name it
    return sandbox


def options() -> dict[str, Any]:
    """How transformers sets Jinja2 up."""
    return {
        "trim_blocks": True,
        "lstrip_blocks": True,
        "autoescape": False,
        "extensions": [_Generation, loopcontrols],
    }


def compile_in(sandbox: Sandbox, source: str) -> jinja2.Template:
    """The template in `source`. jinja2.TemplateError if it does not compile."""
    template = sandbox.from_string(source)
    template.globals = dict(template.globals)  # Jinja2's chained maps are slow to copy, which every rendering does
    return template


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
