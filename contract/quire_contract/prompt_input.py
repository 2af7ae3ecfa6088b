"""What of a request decides its prompt: the same few fields whichever body they came in.

Knows no tokenizer and no JSON; `prompt` turns these into token ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatInput:
    """A conversation to be rendered with the model's chat template."""

    messages: Sequence[Mapping[str, Any]]
    """As the template sees them."""
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False
    """Templates write the special tokens themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextInput:
    """Prompts as text or token ids, in the order of the choices."""

    prompts: Sequence[str | list[int]]
    add_special_tokens: bool = True
    """Applies to text only."""


PromptInput = ChatInput | TextInput


class HasPrompt(Protocol):
    """A decoded body that asks for generation or tokenisation."""

    def prompt_input(self) -> PromptInput:
        """What decides the prompt."""
        ...
