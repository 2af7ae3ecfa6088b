"""What of a request decides its prompt: the same few fields whichever body they came in.

Knows no tokenizer and no JSON; `prompt` turns these into token ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec


class Truncation(msgspec.Struct, frozen=True, kw_only=True):
    """Of a prompt that is too long, only the last tokens are kept."""

    num_tokens: int
    """At most so many; negative: as many as fit into the model's length beside the output."""
    output: int
    """Tokens of output that the request wants."""

    def cut(self, token_ids: list[int], max_model_len: int) -> list[int]:
        """What is kept, at least one token."""
        most = self.num_tokens if self.num_tokens >= 0 else max(1, max_model_len - self.output)
        return token_ids[-most:] if 0 < most < len(token_ids) else token_ids


class ChatInput(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to be rendered with the model's chat template."""

    messages: Sequence[Mapping[str, Any]]
    """As the template sees them."""
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = {}
    add_special_tokens: bool = False
    """Templates write the special tokens themselves."""
    truncation: Truncation | None = None


class TextInput(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts as text or token ids, in the order of the choices."""

    prompts: Sequence[str | list[int]]
    add_special_tokens: bool = True
    """Applies to text only."""
    truncation: Truncation | None = None


PromptInput = ChatInput | TextInput


class HasPrompt(Protocol):
    """A decoded body that asks for generation or tokenisation."""

    def prompt_input(self) -> PromptInput:
        """What decides the prompt."""
        ...
