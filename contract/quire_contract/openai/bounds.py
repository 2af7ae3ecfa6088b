"""The ranges of a request's fields as data: `validation` refuses by them and /openapi.json shows them, so that both say the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_contract.openai.limits import MAX_SEED, MIN_SEED, Limits

MAX_BIAS = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """Where a number may lie. None: no limit on that side."""

    low: float
    high: float | None = None
    is_low_excluded: bool = False
    remark: str = ""

    def holds(self, value: float) -> bool:
        """Whether the number is inside; NaN never is."""
        above = value > self.low if self.is_low_excluded else value >= self.low
        return above and (self.high is None or value <= self.high)

    @property
    def words(self) -> str:
        """What is allowed, for a refusal."""
        if self.remark:
            return self.remark
        if self.is_low_excluded:
            return f"greater than {self.low}" + ("" if self.high is None else f" and at most {self.high}")
        return f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"

    @property
    def schema(self) -> dict[str, Any]:
        """The same in JSON Schema."""
        low = "exclusiveMinimum" if self.is_low_excluded else "minimum"
        return {low: self.low} if self.high is None else {low: self.low, "maximum": self.high}


FLOAT_BOUNDS: Mapping[str, Bound] = {
    "temperature": Bound(low=0, high=2),
    "top_p": Bound(low=0, high=1, is_low_excluded=True),
    "top_k": Bound(low=-1, high=2**31 - 1, remark="at least -1 (0 and -1: all tokens)"),
    "min_p": Bound(low=0, high=1),
    "presence_penalty": Bound(low=-2, high=2),
    "frequency_penalty": Bound(low=-2, high=2),
    "repetition_penalty": Bound(low=1e-3, high=10),
}


def number_bounds(limits: Limits) -> Mapping[str, Bound]:
    """By field of a chat or completion. A field may be of another type in one of them (`logprobs`); then it has no bound there.
    A test holds `validation` to every edge."""
    return {
        **FLOAT_BOUNDS,
        "n": Bound(low=1, high=limits.max_n),
        "max_tokens": Bound(low=1),
        "max_completion_tokens": Bound(low=1),
        "min_tokens": Bound(low=0),
        "seed": Bound(low=MIN_SEED, high=MAX_SEED),
        "logprobs": Bound(low=0, high=limits.max_logprobs),
        "top_logprobs": Bound(low=0, high=limits.max_logprobs),
    }


def size_schemas(limits: Limits) -> Mapping[str, dict[str, Any]]:
    """JSON Schema of the sizes that `validation` allows, by field; each keyword acts on values of its own type only."""
    strings = {"minLength": 1, "maxLength": limits.max_stop_chars}
    return {
        "stop": {**strings, "maxItems": limits.max_stop, "items": strings},
        "stop_token_ids": {"maxItems": limits.max_stop_token_ids},
        "logit_bias": {
            "maxProperties": limits.max_logit_bias,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"minimum": -MAX_BIAS, "maximum": MAX_BIAS},
        },
        "messages": {"minItems": 1, "maxItems": limits.max_messages},
        "input": {"minItems": 1, "maxItems": limits.max_messages},
        "prompt": {"minItems": 1},
        "cache_salt": {"maxLength": limits.max_cache_salt_chars},
    }
