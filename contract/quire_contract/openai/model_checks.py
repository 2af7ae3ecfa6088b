"""Checks that need the model's numbers: the vocabulary and the longest sequence."""

from collections.abc import Sequence

from quire_contract.openai.errors import CODE_CONTEXT_LENGTH, ApiError, invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import CompletionRequest, GenerationRequest, logit_bias_items


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """400 that names the first id outside [0, vocab_size)."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        index = next(i for i, token in enumerate(token_ids) if not 0 <= token < vocab_size)
        shown = token_ids[index] if abs(token_ids[index]) < 2**64 else "a number of more than 64 bits"
        raise invalid(f"{param}[{index}]", f"{shown} is not a token id of this model; ids are 0 to {vocab_size - 1}")


def check_vocabulary(request: GenerationRequest, vocab_size: int) -> None:
    """400 if a field names tokens that the model does not have."""
    check_token_ids(request.stop_token_ids or (), vocab_size, "stop_token_ids")
    check_token_ids(request.allowed_token_ids or (), vocab_size, "allowed_token_ids")
    check_token_ids(request.logprob_token_ids or (), vocab_size, "logprob_token_ids")
    for token, _ in logit_bias_items(request):
        if token >= vocab_size:
            raise invalid(f"logit_bias[{token}]", f"is not a token id of this model; ids are 0 to {vocab_size - 1}")


def check_prompt_logprobs(request: GenerationRequest, num_prompt_tokens: int, limits: Limits) -> None:
    """400 if the prompts, of so many tokens in all, would be shown with too many log-probabilities."""
    if request.num_prompt_logprobs is None:
        return
    num_entries = num_prompt_tokens * request.num_choices * (request.num_prompt_logprobs + 1)
    if num_entries > limits.max_prompt_logprob_entries:
        is_echo = isinstance(request, CompletionRequest) and request.prompt_logprobs is None
        raise invalid(
            "echo" if is_echo else "prompt_logprobs",
            f"the prompts' log-probabilities are {num_entries} values (tokens of all prompts x choices x (k + 1)); at most "
            f"{limits.max_prompt_logprob_entries} are allowed. Send fewer prompts at once or ask for a smaller k",
        )


def resolve_max_tokens(
    requested: int | None, num_prompt_tokens: int, max_model_len: int, *, param: str = "messages"
) -> int:
    """Output tokens at most: what was asked (None: as many as fit), cut to what fits beside the prompt.

    400 `context_length_exceeded` if the prompt leaves no room for a token, or if `requested` alone is longer than the model.
    """
    if num_prompt_tokens >= max_model_len:
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has {num_prompt_tokens}; "
            "shorten it so that at least one token of output fits.",
            param=param,
            code=CODE_CONTEXT_LENGTH,
        )
    if requested is not None and requested > max_model_len:
        raise ApiError(
            400,
            f"max_tokens is more than this model's maximum context length of {max_model_len} tokens.",
            param="max_tokens",
            code=CODE_CONTEXT_LENGTH,
        )
    room = max_model_len - num_prompt_tokens
    return room if requested is None else min(requested, room)
