"""Which format a model speaks, by flag or by what its chat template and vocabulary show. First fitting rule wins; docs/tools.md lists them.

The template is the better witness: it prints the calls of earlier messages as the model was trained to write them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from quire_worker.server.parsing import scripts, xml_script
from quire_worker.server.parsing.dialect import Dialect, Marker
from quire_worker.server.parsing.formats import FORMATS, ToolFormat
from quire_worker.server.parsing.think_script import MISTRAL_THINK, THINK, ThinkTags

HasToken = Callable[[str], bool]
"""Whether the vocabulary has a token that is exactly this text."""


class Renderer(Protocol):
    """What is asked of a `PromptRenderer`."""

    @property
    def chat_templates(self) -> Mapping[str, str]: ...
    def added_token(self, text: str) -> tuple[int, bool] | None: ...


def choose_dialect(renderer: Renderer, tools_flag: str, reasoning_flag: str) -> Dialect:
    """How the renderer's model speaks."""
    templates = renderer.chat_templates.values()

    def has_token(text: str) -> bool:
        return renderer.added_token(text) is not None

    tools = choose_tool_format(tools_flag, templates, has_token)
    tags = choose_think_tags(reasoning_flag, templates, has_token)
    texts = (*(tools.markers if tools else ()), *((tags.begin, tags.end) if tags else ()))
    found = ((text, renderer.added_token(text)) for text in texts)
    return Dialect(tools, tags, {text: Marker(*token) for text, token in found if token is not None})


def choose_tool_format(flag: str, templates: Iterable[str], has_token: HasToken) -> ToolFormat | None:
    """`flag` is auto, none, a format's name, or mistral, of which the vocabulary shows the generation."""
    if flag == "none":
        return None
    if flag == "mistral":
        return FORMATS["mistral_v11" if has_token(scripts.ARGS) else "mistral_v3"]
    if flag != "auto":
        return FORMATS[flag]
    source = "\n".join(templates)
    if "tools" not in source and "tool_calls" not in source:
        return None  # the model would not be told of them
    rules = (
        (scripts.CALLS_BEGIN in source, "deepseek_v3" if "```json" in source else "deepseek_v31"),
        (scripts.TOOL_CALLS in source, "mistral_v11" if has_token(scripts.ARGS) else "mistral_v3"),
        (xml_script.FUNCTION in source, "qwen3_coder"),
        (scripts.TOOL_CALL in source, "hermes"),
        (scripts.PYTHON_TAG in source or has_token(scripts.PYTHON_TAG), "llama3_json"),
    )
    return next((FORMATS[name] for applies, name in rules if applies), None)


def choose_think_tags(flag: str, templates: Iterable[str], has_token: HasToken) -> ThinkTags | None:
    """`flag` is auto, none, mistral, or think and the names it has elsewhere."""
    if flag == "none":
        return None
    if flag == "mistral":
        return MISTRAL_THINK
    if flag != "auto":
        return THINK
    source = "\n".join(templates)
    if THINK.end in source or has_token(THINK.end):
        return THINK
    return MISTRAL_THINK if MISTRAL_THINK.begin in source or has_token(MISTRAL_THINK.begin) else None
