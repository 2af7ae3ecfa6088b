"""The tools of a chat: what clients send, what is allowed, and what a chat template sees of it.

A tool stays the JSON object that the client wrote, because templates print it; only its order of keys is made the one that models were
trained on. Knows no model and no output format.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from quire_contract.openai.errors import CODE_INVALID_TYPE, CODE_MISSING, CODE_UNSUPPORTED, invalid
from quire_contract.openai.limits import Limits

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
"""Of a function that takes none."""
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_MAX_KWARG_BYTES = 4096
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_MODES = ("auto", "none", "required")


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class ToolReference(msgspec.Struct, frozen=True, kw_only=True):
    """A tool by its name."""

    function: NamedFunction
    type: str = "function"


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the request's tools."""

    mode: str
    tools: list[ToolReference]


class ToolChoiceObject(msgspec.Struct, frozen=True, kw_only=True):
    """`{"type": "function", "function": {"name"}}`: that function is called. `{"type": "allowed_tools", …}`: only those may be."""

    type: str = "function"
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call, checked."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of an object."""
    strict: bool
    """Whether its arguments must match the schema."""


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """How a request wants tools used. Without tools, or with tool_choice none, there are no functions."""

    functions: tuple[Function, ...]
    """Those that may be called."""
    mode: Literal["none", "auto", "required", "named"]
    """named: exactly the one function, once."""
    parallel: bool
    """Whether a message may hold several calls."""
    restricted: bool = False
    """Whether the request has more tools than may be called."""


class HasTools(Protocol):
    """A decoded chat body."""

    @property
    def tools(self) -> list[dict[str, Any]] | None: ...
    @property
    def tool_choice(self) -> str | ToolChoiceObject | None: ...
    @property
    def parallel_tool_calls(self) -> bool | None: ...


def check_tools(body: HasTools, limits: Limits) -> None:
    """400 that names what is wrong with a chat's tools and tool_choice."""
    if body.tools is not None:
        if not body.tools:
            raise invalid("tools", "must hold at least one tool; leave the field out if there are none")
        if len(body.tools) > limits.max_tools:
            raise invalid("tools", f"has {len(body.tools)} entries; at most {limits.max_tools} are allowed")
        names: set[str] = set()
        for index, tool in enumerate(body.tools):
            name = _check_tool(tool, f"tools[{index}]", limits)
            if name in names:
                raise invalid(f"tools[{index}].function.name", f"{name!r} is used twice")
            names.add(name)
    _check_choice(body.tool_choice, {tool["function"]["name"] for tool in body.tools or ()})


def _check_tool(tool: Mapping[str, Any], path: str, limits: Limits) -> str:
    """The function's name."""
    kind = tool.get("type", "function")
    if kind != "function":
        raise invalid(
            f"{path}.type", f"{str(kind)[:100]!r} is not supported; only function tools are", CODE_UNSUPPORTED
        )
    function = tool.get("function")
    if not isinstance(function, dict):
        raise invalid(f"{path}.function", "an object with a name and parameters is required", CODE_MISSING)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"{path}.function.name", "must be 1 to 64 letters, digits, underscores, dots and dashes")
    if not isinstance(function.get("description") or "", str):
        raise invalid(f"{path}.function.description", "must be a string", CODE_INVALID_TYPE)
    if not isinstance(function.get("strict") or False, bool):
        raise invalid(f"{path}.function.strict", "must be true or false", CODE_INVALID_TYPE)
    _check_parameters(function.get("parameters"), f"{path}.function.parameters", limits)
    return name


def _check_parameters(schema: Any, path: str, limits: Limits) -> None:
    if schema is None:
        return
    if not isinstance(schema, dict):
        raise invalid(path, "must be a JSON schema, an object", CODE_INVALID_TYPE)
    if schema.get("type", "object") != "object":
        raise invalid(f"{path}.type", 'must be "object": a function takes named parameters')
    if depth_exceeds(schema, limits.max_tool_schema_depth):
        raise invalid(path, f"is nested more than {limits.max_tool_schema_depth} levels deep")
    size = len(msgspec.json.encode(schema))
    if size > limits.max_tool_schema_bytes:
        raise invalid(path, f"has {size} bytes of JSON; at most {limits.max_tool_schema_bytes} are allowed")


def depth_exceeds(value: Any, limit: int) -> bool:
    """Whether a JSON value is nested deeper than `limit`, level by level, so that no depth harms this process."""
    level = [value]
    for _ in range(limit):
        level = [part for item in level for part in _parts(item)]
        if not level:
            return False
    return True


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (part for part in value.values() if isinstance(part, dict | list))
    elif isinstance(value, list):
        yield from (part for part in value if isinstance(part, dict | list))


def _check_choice(choice: str | ToolChoiceObject | None, names: set[str]) -> None:
    if choice is None or (choice == "none" and not names):
        return
    if not names:
        raise invalid("tool_choice", "is only allowed when tools are given")
    if isinstance(choice, str):
        if choice not in _MODES:
            raise invalid(
                "tool_choice", f"{choice[:100]!r} is not auto, none, required or an object that names a function"
            )
        return
    if choice.type == "function":
        if choice.function is None:
            raise invalid("tool_choice.function", "is required", CODE_MISSING)
        _check_known(choice.function.name, names, "tool_choice.function.name")
    elif choice.type == "allowed_tools":
        _check_allowed(choice.allowed_tools, names)
    else:
        raise invalid("tool_choice.type", f"{choice.type[:100]!r} is not supported; use function or allowed_tools")


def _check_allowed(allowed: AllowedTools | None, names: set[str]) -> None:
    if allowed is None:
        raise invalid("tool_choice.allowed_tools", "is required", CODE_MISSING)
    if allowed.mode not in ("auto", "required"):
        raise invalid("tool_choice.allowed_tools.mode", f"{allowed.mode[:100]!r} is not auto or required")
    if not allowed.tools:
        raise invalid("tool_choice.allowed_tools.tools", "must name at least one tool")
    for index, tool in enumerate(allowed.tools):
        _check_known(tool.function.name, names, f"tool_choice.allowed_tools.tools[{index}].function.name")


def _check_known(name: str, names: set[str], path: str) -> None:
    if name not in names:
        raise invalid(path, f"{name[:100]!r} is not among the request's tools")


def tool_use(body: HasTools) -> ToolUse:
    """What a checked chat wants of its tools."""
    functions = tuple(map(_function, body.tools or ()))
    choice, parallel = body.tool_choice, body.parallel_tool_calls is not False
    if not functions or choice == "none":
        return ToolUse(functions=(), mode="none", parallel=parallel)
    if choice is None or choice == "auto":
        return ToolUse(functions=functions, mode="auto", parallel=parallel)
    if isinstance(choice, str):
        return ToolUse(functions=functions, mode="required", parallel=parallel)
    if choice.function is not None and choice.type == "function":
        named = tuple(function for function in functions if function.name == choice.function.name)
        return ToolUse(functions=named, mode="named", parallel=False)
    assert choice.allowed_tools is not None, "the body is checked"
    allowed = {tool.function.name for tool in choice.allowed_tools.tools}
    kept = tuple(function for function in functions if function.name in allowed)
    mode: Literal["auto", "required"] = "required" if choice.allowed_tools.mode == "required" else "auto"
    return ToolUse(functions=kept, mode=mode, parallel=parallel, restricted=len(kept) < len(functions))


def _function(tool: Mapping[str, Any]) -> Function:
    function = tool["function"]
    parameters = function.get("parameters")
    if not parameters:
        parameters = {**NO_PARAMETERS, "additionalProperties": False}
    return Function(name=function["name"], parameters=parameters, strict=function.get("strict") is True)


def template_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """The tools as chat templates print them: type, function (name, description, parameters, then what else the client sent)."""
    return None if not tools else [_template_tool(tool) for tool in tools]


def _template_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, dict):
        return dict(tool)  # refused by check_tools; a router only needs not to fail
    shown: dict[str, Any] = {"name": function.get("name")}
    if function.get("description") is not None:
        shown["description"] = function["description"]
    shown["parameters"] = function.get("parameters") or dict(NO_PARAMETERS)
    shown |= {
        key: value for key, value in function.items() if key not in shown and key != "strict" and value is not None
    }
    return {"type": "function", "function": shown}


def template_kwargs(effort: str | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a template is told beside the conversation. The effort goes by every name that templates read; what is given wins."""
    if effort is None:
        return dict(given or {})
    thinks = effort != "none"
    told: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}
    if thinks:
        told["reasoning_effort"] = effort
    return {**told, **(given or {})}


def check_reasoning(effort: str | None, kwargs: Mapping[str, Any] | None, limits: Limits) -> None:
    """400 for an unknown effort, and for a template argument that this server does not let requests set."""
    if effort is not None and effort not in REASONING_EFFORTS:
        raise invalid("reasoning_effort", f"{effort[:100]!r} is not one of {', '.join(REASONING_EFFORTS)}")
    for name, value in (kwargs or {}).items():
        path = f"chat_template_kwargs.{name[:100]}"
        if name not in limits.template_kwargs:
            allowed = ", ".join(sorted(limits.template_kwargs))
            raise invalid(
                path,
                f"is not allowed here; allowed are {allowed} (the server's --allow-chat-template-kwarg adds names)",
            )
        if depth_exceeds(value, limits.max_tool_schema_depth) or len(msgspec.json.encode(value)) > _MAX_KWARG_BYTES:
            raise invalid(path, f"has more than {_MAX_KWARG_BYTES} bytes of JSON or is nested too deeply")
