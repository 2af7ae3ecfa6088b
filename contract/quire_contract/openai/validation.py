"""Ranges of the fields of a generation request, as far as they do not depend on the model.

Each check raises a 400 that names the field and says what is allowed.
"""

from collections.abc import Callable

from quire_contract.openai.errors import invalid
from quire_contract.openai.limits import MAX_SEED, MIN_SEED, Limits
from quire_contract.openai.messages import ChatMessage, check_message
from quire_contract.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    Prompt,
    RoutingFields,
    TokenizeRequest,
    stop_strings,
)
from quire_contract.openai.tools import check_reasoning, check_tools

MAX_BIAS = 100.0


def check_chat(request: ChatCompletionRequest, limits: Limits) -> None:
    """A chat request."""
    check_messages(request.messages, limits)
    _check_generation(request, limits)
    check_tools(request, limits)
    check_reasoning(request.reasoning_effort, request.chat_template_kwargs, limits)
    if request.continue_final_message and request.add_generation_prompt:
        raise invalid("continue_final_message", "cannot be combined with add_generation_prompt: true")
    first, second = request.max_tokens, request.max_completion_tokens
    _check_range("max_completion_tokens", second, 1, None)
    if first is not None and second is not None and first != second:
        raise invalid("max_tokens", "differs from max_completion_tokens; send one of them")
    _check_range("top_logprobs", request.top_logprobs, 0, limits.max_logprobs)
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("top_logprobs", "needs logprobs: true")


def check_completion(request: CompletionRequest, limits: Limits) -> None:
    """A completion request."""
    check_prompt(request.prompt, limits)
    _check_generation(request, limits)
    _check_range("logprobs", request.logprobs, 0, limits.max_logprobs)
    if request.best_of is not None and request.best_of != request.num_choices:
        raise invalid("best_of", f"is not supported unless it equals n, which is {request.num_choices}")
    num_choices = request.num_prompts * request.num_choices
    if num_choices > limits.max_choices:
        raise invalid("n", f"times the number of prompts is {num_choices}; at most {limits.max_choices} is allowed")


def check_tokenize(request: TokenizeRequest, limits: Limits) -> None:
    """A tokenize request."""
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "send either prompt or messages")
    if request.messages is not None:
        check_messages(request.messages, limits)
    check_reasoning(request.reasoning_effort, request.chat_template_kwargs, limits)


def check_detokenize(request: DetokenizeRequest, limits: Limits) -> None:
    """A detokenize request; ids are checked against the vocabulary by `model_checks.check_token_ids`."""
    del request, limits


def check_routing(fields: RoutingFields, limits: Limits) -> None:
    """What a router must know to be right before it renders a prompt."""
    if (fields.prompt is None) == (fields.messages is None):
        raise invalid("messages" if fields.prompt is None else "prompt", "send either messages or prompt")
    if fields.messages is not None:
        check_messages(fields.messages, limits)
    elif fields.prompt is not None:
        check_prompt(fields.prompt, limits)
    _check_text("cache_salt", fields.cache_salt, limits.max_cache_salt_chars)


def check_messages(messages: list[ChatMessage], limits: Limits) -> None:
    """A conversation."""
    if not messages:
        raise invalid("messages", "must hold at least one message")
    _check_count("messages", len(messages), limits.max_messages)
    for index, message in enumerate(messages):
        check_message(message, f"messages[{index}]")


def check_prompt(prompt: Prompt, limits: Limits) -> None:
    """A completion's prompt: a string, a list of strings, a list of token ids or a list of those; none of them empty lists."""
    if isinstance(prompt, str):
        return
    if not prompt:
        raise invalid("prompt", "must not be an empty list")
    kind = type(prompt[0])
    if set(map(type, prompt)) != {kind}:  # a prompt may hold a million ids: no loop of ours goes over good ones
        index = next(i for i, item in enumerate(prompt) if type(item) is not kind)
        raise invalid(f"prompt[{index}]", "is of another kind than prompt[0]; strings, token ids and lists do not mix")
    if kind is int:
        return
    _check_count("prompt", len(prompt), limits.max_prompts)
    if [] in prompt:
        raise invalid(f"prompt[{prompt.index([])}]", "must hold at least one token id")


def _check_generation(request: GenerationRequest, limits: Limits) -> None:
    _check_range("n", request.n, 1, limits.max_n)
    _check_range("max_tokens", request.max_tokens, 1, None)
    _check_range("min_tokens", request.min_tokens, 0, None)
    most = request.requested_max_tokens
    if request.min_tokens and most is not None and request.min_tokens > most:
        raise invalid("min_tokens", f"{_short(request.min_tokens)} is more than max_tokens, which is {_short(most)}")
    _check_range("seed", request.seed, MIN_SEED, MAX_SEED)
    _check_floats(request)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "needs stream: true")
    _check_stop(request, limits)
    _check_logit_bias(request.logit_bias, limits)
    _check_text("cache_salt", request.cache_salt, limits.max_cache_salt_chars)


_FLOAT_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: 0 <= x <= 2, "between 0 and 2"),
    "top_p": (lambda x: 0 < x <= 1, "greater than 0 and at most 1"),
    "top_k": (lambda x: -1 <= x < 2**31, "at least -1 (0 and -1: all tokens)"),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "presence_penalty": (lambda x: -2 <= x <= 2, "between -2 and 2"),
    "frequency_penalty": (lambda x: -2 <= x <= 2, "between -2 and 2"),
    "repetition_penalty": (lambda x: 0 < x <= 10, "greater than 0 and at most 10"),
}


def _check_floats(request: GenerationRequest) -> None:
    for name, (is_inside, allowed) in _FLOAT_RANGES.items():
        value = getattr(request, name)
        if value is not None and not is_inside(value):
            shown = _short(value) if isinstance(value, int) else f"{value:g}"
            raise invalid(name, f"{shown} is out of range; it must be {allowed}")


def _check_stop(request: GenerationRequest, limits: Limits) -> None:
    strings = stop_strings(request)
    _check_count("stop", len(strings), limits.max_stop)
    for index, text in enumerate(strings):
        path = "stop" if isinstance(request.stop, str) else f"stop[{index}]"
        if not text:
            raise invalid(path, "must not be empty")
        _check_text(path, text, limits.max_stop_chars)
    _check_count("stop_token_ids", len(request.stop_token_ids or ()), limits.max_stop_token_ids)


def _check_logit_bias(bias: dict[str, float] | None, limits: Limits) -> None:
    _check_count("logit_bias", len(bias or ()), limits.max_logit_bias)
    for key, value in (bias or {}).items():
        path = f"logit_bias[{key[:20]}]"
        if not (key.isascii() and key.isdigit()) or len(key) > len(str(2**32)):
            raise invalid(path, "the key must be a token id")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise invalid(path, f"{value:g} is out of range; it must be between -100 and 100")


def _check_range(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    raise invalid(name, f"{_short(value)} is out of range; it must be {allowed}")


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise invalid(name, f"has {count} entries; at most {most} are allowed")


def _check_text(name: str, value: str | None, max_chars: int) -> None:
    if value is not None and len(value) > max_chars:
        raise invalid(name, f"has {len(value)} characters; at most {max_chars} are allowed")


def _short(value: int) -> str:
    """A number as text; Python refuses to print integers of thousands of digits."""
    return str(value) if abs(value) < 2**64 else "a number of more than 64 bits"
