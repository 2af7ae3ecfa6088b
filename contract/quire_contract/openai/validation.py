"""Ranges of the fields of a generation request, as far as they do not depend on the model.

Each check raises a 400 that names the field and says what is allowed.
"""

from quire_contract.openai.bounds import FLOAT_BOUNDS, MAX_BIAS
from quire_contract.openai.errors import invalid
from quire_contract.openai.limits import MAX_SEED, MIN_SEED, Limits
from quire_contract.openai.messages import ChatMessage, check_message
from quire_contract.openai.ranges import check_count as _check_count
from quire_contract.openai.ranges import check_range as _check_range
from quire_contract.openai.ranges import check_text as _check_text
from quire_contract.openai.ranges import short as _short
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
from quire_contract.openai.structured import check_structured
from quire_contract.openai.token_fields import check_token_fields, check_truncation
from quire_contract.openai.tools import check_reasoning, check_tools
from quire_contract.openai.urgency_checks import check_urgency


def check_chat(request: ChatCompletionRequest, limits: Limits) -> None:
    """A chat request."""
    check_messages(request.messages, limits)
    _check_generation(request, limits)
    check_tools(request, limits)
    check_reasoning(request.reasoning_effort, request.chat_template_kwargs, limits)
    if request.continue_final_message and request.add_generation_prompt:
        raise invalid("continue_final_message", "cannot be combined with add_generation_prompt: true")
    first, second = request.max_tokens, request.max_completion_tokens
    _check_range("max_tokens", first, 1, None)
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
    if request.max_tokens == 0 and not request.echo:
        raise invalid("max_tokens", "0 is allowed only with echo: true, when the prompt alone comes back")
    _check_range("max_tokens", request.max_tokens, 0, None)
    _check_range("logprobs", request.logprobs, 0, limits.max_logprobs)
    if request.best_of is not None and request.best_of not in (1, request.num_choices):
        raise invalid("best_of", f"is not supported unless it is 1 or equals n, which is {request.num_choices}")
    num_choices = request.num_prompts * request.num_choices
    if num_choices > limits.max_choices:
        raise invalid("n", f"times the number of prompts is {num_choices}; at most {limits.max_choices} is allowed")
    num_allowed = request.num_prompts * len(request.allowed_token_ids or ())
    if num_allowed > limits.max_allowed_token_entries:
        most = limits.max_allowed_token_entries
        raise invalid(
            "allowed_token_ids", f"times the number of prompts is {num_allowed} ids; at most {most} are allowed"
        )


def check_tokenize(request: TokenizeRequest, limits: Limits) -> None:
    """A tokenize request."""
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "send either prompt or messages")
    if request.messages is not None:
        check_messages(request.messages, limits)
    check_reasoning(request.reasoning_effort, request.chat_template_kwargs, limits)
    check_truncation(request.truncate_prompt_tokens)


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
    check_urgency(request)
    _check_text("cache_salt", request.cache_salt, limits.max_cache_salt_chars)
    check_token_fields(request, limits)
    check_structured(request.response_format, request.structured_outputs, limits)


def _check_floats(request: GenerationRequest) -> None:
    for name, bound in FLOAT_BOUNDS.items():
        value = getattr(request, name)
        if value is not None and not bound.holds(value):
            shown = _short(value) if isinstance(value, int) else f"{value:g}"
            raise invalid(name, f"{shown} is out of range; it must be {bound.words}")


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
