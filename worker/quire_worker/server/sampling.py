"""From a checked OpenAI request to the engine's sampling parameters: the request's value, else the model's default, else OpenAI's.

Knows no text and no network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from quire_contract.openai.requests import GenerationRequest, logit_bias_items
from quire_worker.request import RepetitionDetection, SamplingParams

T = TypeVar("T")
_LEAST_TEMPERATURE = 0.01
"""Below it (and above 0) logits divided by the temperature leave float32; greedy is what is meant."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What holds when a request does not say: a model's generation_config.json, or OpenAI's defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    """Bounds a chat that names no max_tokens."""

    @classmethod
    def of(cls, model: Mapping[str, float]) -> "SamplingDefaults":
        """Values of a prompt bundle's `default_sampling` that are in range; others are left at OpenAI's."""
        values: dict[str, Any] = {
            name: model[name] for name, (low, high) in _RANGES.items() if low <= model.get(name, low - 1) <= high
        }
        for name in {"top_k", "max_tokens"} & values.keys():
            values[name] = max(0, int(values[name]))
        return cls(**values)


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-9, 1),
    "top_k": (-1, 2**31),
    "min_p": (0, 1),
    "repetition_penalty": (1e-3, 10),
    "max_tokens": (1, 2**31),
}


def sampling_params(
    request: GenerationRequest,
    defaults: SamplingDefaults,
    *,
    max_tokens: int,
    seed: int,
    eos_token_ids: tuple[int, ...],
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> SamplingParams:
    """Complete parameters for one prompt. `max_tokens` is resolved for it; `seed` is used if the request has none.

    `bad_words` are the request's, as tokens. Where only the prompt is wanted (max_tokens 0), one token is made and not shown."""
    temperature = _either(request.temperature, defaults.temperature)
    return SamplingParams(
        max_tokens=max(1, max_tokens),
        min_tokens=min(request.min_tokens or 0, max_tokens),
        temperature=temperature if temperature == 0 else max(temperature, _LEAST_TEMPERATURE),
        top_p=_either(request.top_p, defaults.top_p),
        top_k=max(0, _either(request.top_k, defaults.top_k)),
        min_p=_either(request.min_p, defaults.min_p),
        seed=_either(request.seed, seed) % 2**64,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_either(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=tuple(logit_bias_items(request)),
        logprobs=request.num_logprobs,
        stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
        eos_token_ids=eos_token_ids,
        ignore_eos=request.ignore_eos or False,
        allowed_token_ids=tuple(dict.fromkeys(request.allowed_token_ids or ())),
        bad_words=bad_words,
        logprob_token_ids=tuple(request.logprob_token_ids or ()),
        prompt_logprobs=request.num_prompt_logprobs,
        repetition_detection=_repetition(request),
    )


def _repetition(request: GenerationRequest) -> RepetitionDetection | None:
    wanted = request.repetition_detection
    if wanted is None or not wanted.max_pattern_size:
        return None
    return RepetitionDetection(
        max_pattern_size=wanted.max_pattern_size,
        min_pattern_size=wanted.min_pattern_size or 1,
        min_count=wanted.min_count or 2,
    )


def _either(value: T | None, default: T) -> T:
    return default if value is None else value
