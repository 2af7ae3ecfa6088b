"""Request bodies. Every field may be null, which means absent; fields not listed are ignored or, if they constrain the
answer and are not supported, refused (`unsupported`). Ranges are in `validation`.

Vocabulary- and model-dependent checks are in `model_checks`. Sampling fields that are None take the model's default, then OpenAI's.
"""

from typing import Any, cast

import msgspec

from quire_contract.openai.messages import ChatMessage, template_message
from quire_contract.openai.structured import Grammar, ResponseFormat, StructuredOutputs, grammar_of
from quire_contract.openai.tools import ToolChoiceObject, template_kwargs, template_tools
from quire_contract.prompt_input import ChatInput, PromptInput, TextInput, Truncation

Prompt = str | list[str | int | list[int]]
DEFAULT_COMPLETION_MAX_TOKENS = 16
"""OpenAI's, for completions without max_tokens. A chat without it may fill the model's length."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream brings besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RepetitionDetection(msgspec.Struct, frozen=True, kw_only=True):
    """Ends an answer that goes in circles: a pattern of min_pattern_size to max_pattern_size tokens, min_count times in a row."""

    max_pattern_size: int | None = None
    """None or 0: off."""
    min_pattern_size: int | None = None
    """None or 0: 1."""
    min_count: int | None = None


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
    priority: int | None = None
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    repetition_detection: RepetitionDetection | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | ToolChoiceObject | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompt."""
        return _chat_input(self, _truncation(self.truncate_prompt_tokens, self.requested_max_tokens))

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must match; None: it is free."""
        return grammar_of(self.response_format, self.structured_outputs)

    @property
    def num_choices(self) -> int:
        """Choices the answer has."""
        return self.n or 1

    @property
    def requested_max_tokens(self) -> int | None:
        """Output tokens at most, if the client said so; `max_completion_tokens` is the newer name."""
        return _chat_max_tokens(self)

    @property
    def num_logprobs(self) -> int | None:
        """None: no log-probabilities. k: the chosen token's and the k best."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """None: no log-probabilities of the prompt. k: its own tokens' and the k best in their places."""
        return self.prompt_logprobs


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
    priority: int | None = None
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    repetition_detection: RepetitionDetection | None = None
    echo: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompts."""
        truncation = _truncation(self.truncate_prompt_tokens, self.requested_max_tokens)
        return text_input(self.prompt, self.add_special_tokens, truncation)

    @property
    def num_prompts(self) -> int:
        """Prompts in the body; choice j of prompt i has index i * n + j."""
        return 1 if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else len(self.prompt)

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must match; None: it is free."""
        return grammar_of(self.response_format, self.structured_outputs)

    @property
    def num_choices(self) -> int:
        """Choices the answer has for each prompt."""
        return self.n or 1

    @property
    def requested_max_tokens(self) -> int | None:
        """Output tokens at most; OpenAI's default if the client did not say."""
        return _completion_max_tokens(self)

    @property
    def num_logprobs(self) -> int | None:
        """None: no log-probabilities. k: the chosen token's and the k best."""
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        """None: no log-probabilities of the prompt. k: its own tokens' and the k best in their places; an echo shows `logprobs` of them."""
        echoed = self.logprobs if self.echo else None
        return max((k for k in (self.prompt_logprobs, echoed) if k is not None), default=None)


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize: a prompt or messages, and what else decides the prompt of a completion or a chat with them."""

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
    truncate_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompt; the same as in the body that would be sent with it."""
        if self.messages is not None:
            return _chat_input(self, _truncation(self.truncate_prompt_tokens, _chat_max_tokens(self)))
        truncation = _truncation(self.truncate_prompt_tokens, _completion_max_tokens(self))
        return text_input(self.prompt or "", self.add_special_tokens, truncation)


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
    truncate_prompt_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    """OpenAI's newer name for whose prompts have much in common."""
    timeout_s: float | None = None
    queue_timeout_s: float | None = None

    def prompt_input(self) -> PromptInput:
        """What decides the prompts; the same as for the whole body."""
        if self.messages is not None:
            return _chat_input(self, _truncation(self.truncate_prompt_tokens, _chat_max_tokens(self)))
        truncation = _truncation(self.truncate_prompt_tokens, _completion_max_tokens(self))
        return text_input(self.prompt or "", self.add_special_tokens, truncation)


GenerationRequest = ChatCompletionRequest | CompletionRequest


def prompt_list(prompt: Prompt) -> list[str | list[int]]:
    """The prompts of a checked body, whose items are all of one kind: a string or a list of token ids is one prompt."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return [item for item in prompt if not isinstance(item, int)]


def text_input(prompt: Prompt, add_special_tokens: bool | None, truncation: Truncation | None = None) -> TextInput:
    """Prompts of a completion body. Special tokens are added to text unless the client says no."""
    return TextInput(
        prompts=prompt_list(prompt), add_special_tokens=add_special_tokens is not False, truncation=truncation
    )


def _chat_max_tokens(body: "ChatCompletionRequest | TokenizeRequest | RoutingFields") -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _completion_max_tokens(body: "CompletionRequest | TokenizeRequest | RoutingFields") -> int:
    return DEFAULT_COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens


def _truncation(num_tokens: int | None, max_tokens: int | None) -> Truncation | None:
    """Output gets the room that was asked for, and that of one token where nothing was said: a chat may fill what is left."""
    return None if num_tokens is None else Truncation(num_tokens=num_tokens, output=max(1, max_tokens or 1))


def _chat_input(
    body: "ChatCompletionRequest | TokenizeRequest | RoutingFields", truncation: Truncation | None = None
) -> ChatInput:
    return ChatInput(
        messages=[template_message(message) for message in body.messages or []],
        tools=template_tools(body.tools),
        add_generation_prompt=not body.continue_final_message
        if body.add_generation_prompt is None
        else body.add_generation_prompt,
        continue_final_message=body.continue_final_message is True,
        template_kwargs=template_kwargs(body.reasoning_effort, body.chat_template_kwargs),
        add_special_tokens=body.add_special_tokens is True,
        truncation=truncation,
    )


def stop_strings(request: GenerationRequest) -> list[str]:
    """The stop strings, none if absent."""
    if request.stop is None:
        return []
    return [request.stop] if isinstance(request.stop, str) else request.stop


def logit_bias_items(request: GenerationRequest) -> list[tuple[int, float]]:
    """(token id, bias), by token id. The request is validated."""
    return sorted((int(key), value) for key, value in (request.logit_bias or {}).items())
