"""Ranges of the fields that speak of single tokens: which may come, whose log-probabilities are wanted, how prompts are cut.

Ids are checked against the vocabulary in `model_checks`.
"""

from quire_contract.openai.errors import invalid
from quire_contract.openai.limits import Limits
from quire_contract.openai.ranges import check_count, check_range, check_text, short
from quire_contract.openai.requests import GenerationRequest, RepetitionDetection


def check_token_fields(request: GenerationRequest, limits: Limits) -> None:
    """400 for the first that is out of range."""
    if request.allowed_token_ids is not None:
        if not request.allowed_token_ids:
            raise invalid("allowed_token_ids", "must name at least one token; leave it out to allow all")
        check_count("allowed_token_ids", len(request.allowed_token_ids), limits.max_allowed_token_ids)
    _check_bad_words(request.bad_words or [], limits)
    check_count("logprob_token_ids", len(request.logprob_token_ids or ()), limits.max_logprob_token_ids)
    if request.logprob_token_ids and request.num_logprobs is None:
        raise invalid("logprob_token_ids", "needs logprobs")
    check_range("prompt_logprobs", request.prompt_logprobs, 0, limits.max_logprobs)
    check_truncation(request.truncate_prompt_tokens)
    if request.repetition_detection is not None:
        _check_repetition(request.repetition_detection, limits)


def check_truncation(most: int | None) -> None:
    """400 for a prompt that is to be cut to nothing."""
    if most is not None and most != -1 and most < 1:
        raise invalid(
            "truncate_prompt_tokens", f"{short(most)} is out of range; it must be at least 1, or -1 for what fits"
        )


def _check_bad_words(words: list[str], limits: Limits) -> None:
    check_count("bad_words", len(words), limits.max_bad_words)
    for index, word in enumerate(words):
        if not word:
            raise invalid(f"bad_words[{index}]", "must not be empty")
        check_text(f"bad_words[{index}]", word, limits.max_bad_word_chars)


def _check_repetition(wanted: RepetitionDetection, limits: Limits) -> None:
    name = "repetition_detection"
    check_range(f"{name}.max_pattern_size", wanted.max_pattern_size, 0, limits.max_pattern_size)
    check_range(f"{name}.min_pattern_size", wanted.min_pattern_size, 0, wanted.max_pattern_size or 0)
    if wanted.max_pattern_size:
        check_range(f"{name}.min_count", wanted.min_count or 0, 2, limits.max_pattern_count)
