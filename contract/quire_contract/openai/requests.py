"""Request bodies. Every field may be null, which means absent; fields not listed are ignored or, if they constrain the
answer and are not supported, refused (`unsupported`). Ranges are in `validation`.

Vocabulary- and model-dependent checks are in `model_checks`. Sampling fields that are None take the model's default, then OpenAI's.
"""

from typing import Any, cast

import msgspec

from quire_contract.openai.messages import ChatMessage, template_message
from quire_contract.openai.tools import ToolChoiceObject, template_kwargs, template_tools
from quire_contract.prompt_input import ChatInput, PromptInput, TextInput

Prompt = str | list[str | int | list[int]]
DEFAULT_COMPLETION_MAX_TOKENS = 16
"""OpenAI's, for completions without max_tokens. A chat without it may fill the model's length."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream brings besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatCompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    user: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompt."""
        return _chat_input(self)

    @property
    def num_choices(self) -> int:
        """Choices the answer has."""
        return self.n or 1

    @property
    def requested_max_tokens(self) -> int | None:
        """Output tokens at most, if the client said so; `max_completion_tokens` is the newer name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """None: no log-probabilities. k: the chosen token's and the k best."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /v1/completions."""

    model: str
    prompt: Prompt
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    user: str | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompts."""
        return text_input(self.prompt, self.add_special_tokens)

    @property
    def num_prompts(self) -> int:
        """Prompts in the body; choice j of prompt i has index i * n + j."""
        return 1 if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else len(self.prompt)

    @property
    def num_choices(self) -> int:
        """Choices the answer has for each prompt."""
        return self.n or 1

    @property
    def requested_max_tokens(self) -> int | None:
        """Output tokens at most; OpenAI's default if the client did not say."""
        return DEFAULT_COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """None: no log-probabilities. k: the chosen token's and the k best."""
        return self.logprobs


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompt."""
        if self.messages is not None:
            return _chat_input(self)
        return text_input(self.prompt or "", self.add_special_tokens)


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    tokens: list[int]
    model: str | None = None


class RoutingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a router reads of a chat or completion body: who serves it, whether it streams, and what decides its prompt."""

    model: str
    stream: bool | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    prompt: Prompt | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompts; the same as for the whole body."""
        if self.messages is not None:
            return _chat_input(self)
        return text_input(self.prompt or "", self.add_special_tokens)


GenerationRequest = ChatCompletionRequest | CompletionRequest


def prompt_list(prompt: Prompt) -> list[str | list[int]]:
    """The prompts of a checked body, whose items are all of one kind: a string or a list of token ids is one prompt."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return [item for item in prompt if not isinstance(item, int)]


def text_input(prompt: Prompt, add_special_tokens: bool | None) -> TextInput:
    """Prompts of a completion body. Special tokens are added to text unless the client says no."""
    return TextInput(prompts=prompt_list(prompt), add_special_tokens=add_special_tokens is not False)


def _chat_input(body: "ChatCompletionRequest | TokenizeRequest | RoutingFields") -> ChatInput:
    return ChatInput(
        messages=[template_message(message) for message in body.messages or []],
        tools=template_tools(body.tools),
        add_generation_prompt=not body.continue_final_message
        if body.add_generation_prompt is None
        else body.add_generation_prompt,
        continue_final_message=body.continue_final_message is True,
        template_kwargs=template_kwargs(body.reasoning_effort, body.chat_template_kwargs),
        add_special_tokens=body.add_special_tokens is True,
    )


def stop_strings(request: GenerationRequest) -> list[str]:
    """The stop strings, none if absent."""
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def logit_bias_items(request: GenerationRequest) -> list[tuple[int, float]]:
    """(token id, bias), by token id. The request is validated."""
    return sorted((int(key), value) for key, value in (request.logit_bias or {}).items())
