"""What one generation request asks of the engine, and the tokens it gets back.

Shared by the API process, the scheduler and the runner, so it holds plain values only: no torch, no text, no clock.
"""

import msgspec

FAILED_GRAMMAR = "grammar"
"""The request's grammar cannot be obeyed further; `error` says why, and may be shown to the client."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How tokens are chosen. Complete and validated: the API process has applied every default.

    Sampling is a pure function of (logits, these values, seed, output position); see docs/architecture.md.
    """

    max_tokens: int
    """Output tokens at most, per choice; prompt + max_tokens never exceeds the model's length."""
    min_tokens: int = 0
    """Until so many output tokens exist, end-of-sequence and stop tokens are masked."""
    temperature: float = 1.0
    """0 is greedy: the lowest token id among the largest logits."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    seed: int = 0
    """64-bit unsigned. Choice i of a request uses (seed + i) mod 2**64."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit), ids inside the vocabulary and unique."""
    logprobs: int | None = None
    """None: no log-probabilities. k: the chosen token's and the k best (k may be 0)."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a choice with finish reason "stop", `ignore_eos` or not."""
    eos_token_ids: tuple[int, ...] = ()
    """The model's own end tokens; they end a choice unless `ignore_eos`."""
    ignore_eos: bool = False

    @property
    def ending_token_ids(self) -> tuple[int, ...]:
        """Every token id that ends a choice under these parameters."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids + self.eos_token_ids


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities at one output position, from the raw logits (before penalties, bias and temperature)."""

    logprob: float
    """Of the chosen token."""
    rank: int
    """1 for the most likely token of the vocabulary."""
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]
    """Descending, parallel to top_ids."""


class Submit(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="submit"):
    """Generate `n` choices for one prompt; choice i uses seed + i."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    n: int = 1
    cache_salt: str | None = None
    adapter: str | None = None
    priority: int = 0
    """Not looked at: requests are served first come, first served."""
    grammar: str | None = None
    """What the output must match: a Lark grammar in llguidance's dialect (https://github.com/guidance-ai/llguidance, docs/syntax.md)."""


class ChoiceOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """New tokens of one choice."""

    request_id: str
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    """Parallel to token_ids."""
    finish_reason: str | None = None
    """None: more to come. "stop" | "length" | "error". The ending token, if any, is the last of token_ids."""
    stop_token_id: int | None = None
    """With "stop": the token that ended the choice."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache, told with the choice's first tokens."""
    error: str | None = None
    queue_time_s: float | None = None
    """How long the choice waited for its first admission, told with its first tokens."""
    error_code: str | None = None
    """With "error": one of the FAILED_ constants where the reason is known."""
