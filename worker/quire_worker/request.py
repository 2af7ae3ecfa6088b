"""What one generation request asks of the engine, and the tokens it gets back.

Shared by the API process, the scheduler and the runner, so it holds plain values only: no torch, no text, no clock.
"""

import msgspec

FAILED_NOT_FINITE = "not_finite"
"""The model's logits held NaN or infinity."""
FAILED_NO_TOKEN = "no_token"  # noqa: S105 - a reason
"""What the request forbids left no token that could come."""
FAILURES = {
    FAILED_NOT_FINITE: "the model's output is not finite (NaN or infinity): its weights may be damaged, or overflow in float16; "
    "try --dtype bfloat16 or float32",
    FAILED_NO_TOKEN: "what the request forbids leaves no token that could come",
}
"""In words."""
FAILED_GRAMMAR = "grammar"
"""The request's grammar cannot be obeyed further; `error` says why, and may be shown to the client."""
MAX_LOGPROB_TOKEN_IDS = 128
"""So many places a row has for them on the device."""


class RepetitionDetection(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Ends a choice whose output ends in a pattern that came `min_count` times in a row."""

    max_pattern_size: int
    """Tokens, as is min_pattern_size."""
    min_pattern_size: int
    min_count: int


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
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may come; empty: all. Ids inside the vocabulary, as are the next two fields'."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences, none empty, that the output may not hold: the last token may not come where those before it are the output's end."""
    logprob_token_ids: tuple[int, ...] = ()
    """With `logprobs`: TokenLogprobs.top_ids are these tokens, in this order, in place of the k best. At most MAX_LOGPROB_TOKEN_IDS."""
    prompt_logprobs: int | None = None
    """k: log-probabilities of the prompt's own tokens but the first, and of the k best in their places. Such a request does not
    read the prefix cache. None: none."""
    repetition_detection: RepetitionDetection | None = None

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
    """Parallel to top_ids; descending, unless the request named the tokens."""


class PromptLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Log-probabilities of N consecutive prompt tokens, each given those before it; packed, as prompts are long. Little-endian."""

    first: int
    """Position of the first of them, at least 1."""
    num_top: int
    """k."""
    logprobs: bytes
    """[N] float32."""
    ranks: bytes
    """[N] int32; 1 for the likeliest token of the vocabulary."""
    top_ids: bytes
    """[N, k] int32."""
    top_logprobs: bytes
    """[N, k] float32, descending."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.logprobs) // 4


class Submit(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="submit"):
    """Generate `n` choices for one prompt; choice i uses seed + i."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    n: int = 1
    cache_salt: str | None = None
    adapter: str | None = None
    priority: int = 0
    """Lower is served first. Looked at by the scheduling policy "priority" only."""
    grammar: str | None = None
    """What the output must match: a Lark grammar in llguidance's dialect (https://github.com/guidance-ai/llguidance, docs/syntax.md)."""
    timeout_s: float | None = None
    """Seconds from submission after which the request is ended wherever it is, with finish reason "deadline"."""
    queue_timeout_s: float | None = None
    """Seconds from submission after which it is ended if none of its choices has been in the batch, with finish reason "queue_timeout"."""
    output_token_ids: list[int] = []
    """What the one choice has produced elsewhere, never more than max_tokens: it goes on behind them, and only what follows is told."""
    origin: str = ""
    """Names the client's request that this is a part of: all parts share a bound on rows. Empty: this is all of it."""
    is_streamed: bool = True
    """Whether its client reads tokens as they come. Nobody waits for the next one where it is False: steps may be longer."""


class ChoiceOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """New tokens of one choice."""

    request_id: str
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    """Parallel to token_ids."""
    finish_reason: str | None = None
    """None: more to come. "stop" | "length" | "repetition" | "error" | "deadline" | "queue_timeout". The ending token, if any, is the last
    of token_ids."""
    stop_token_id: int | None = None
    """With "stop": the token that ended the choice."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache, told with the choice's first tokens."""
    error: str | None = None
    """With "error", what went wrong; with "deadline", whether the request was "waiting" or "running"."""
    queue_time_s: float | None = None
    """How long the choice waited for its first admission, told with its first tokens."""
    prompt_logprobs: list[PromptLogprobs] | None = None
    """With the first tokens of choice 0, where asked for: all prompt tokens but the first, in order."""
    error_code: str | None = None
    """With "error": one of the FAILED_ constants where the reason is known."""
    embedding: bytes | None = None
    """Of an Embed's input, which then `choice` is: its vector, little-endian float32."""
    num_preemptions: int = 0
    """Times the choice was put back to wait since its last output."""
