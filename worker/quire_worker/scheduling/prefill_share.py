"""How much of a step prefill may take beside decoding rows, and how prompts that are computed at once divide it.

Decoding rows get their token before any prompt is looked at. What prompts may take then bounds how long the step is, hence how late
everybody's next token: "stall-free batching" of Sarathi-Serve (Agrawal et al., 2024, https://arxiv.org/abs/2403.02310). Without decoding
rows nobody is kept waiting and the whole budget is theirs.

Rows whose tokens nobody reads as they come, those of requests that are not streamed, have no gaps to protect: what counts is when their
last token comes. Among such rows alone prompts get nearly all of the time, so that the batch fills fast. Nearly: without any bound a short
answer, and the first token of a stream that comes, would wait for the prompts of a whole queue.

The prompt that is first in rank gets at least half; up to half goes to shorter ones, shortest first, so that a short prompt does not wait
for the end of a 100,000-token one, which in turn takes at most twice its time. Prompts of equal length are computed one after the other: to
share equally would make all of them late.
"""

from collections.abc import Sequence

from quire_worker.scheduling.speeds import StepSpeeds

UNLIMITED = 2**62
MAX_SLOWDOWN = 4.0
"""The default of max_slowdown: measured in docs/benchmarks/fairness.md."""
MAX_SLOWDOWN_UNREAD = 16.0
"""The default of max_slowdown_unread: decoding keeps a sixteenth of the time, which costs prompts no more than that."""
_SPARE = 0.5
"""Of max_slowdown, kept for steps that take longer than expected."""
_LEAST_TOKENS = 32
"""A smaller chunk gains nothing: the step's fixed costs outweigh it."""


class PrefillShare:
    """The division of a step's tokens among prompts."""

    def __init__(
        self,
        *,
        max_tokens: int = UNLIMITED,
        max_slowdown: float | None = None,
        max_slowdown_unread: float | None = None,
        speeds: StepSpeeds | None = None,
        max_partial: int = 1,
    ) -> None:
        """`max_tokens` bounds a step's prompt tokens beside decoding rows. With `max_slowdown` k (> 2) and measured `speeds` they are
        further bounded so that the step takes less than k times as long as decoding alone would. Where nobody reads what is decoded
        `max_slowdown_unread` bounds them instead, but never below `max_tokens`. `max_partial` prompts that do not fit into a step may
        be under way at once; with 1, prompts are computed in order of rank."""
        self._max_tokens = max_tokens
        self._max_slowdown = max_slowdown
        self._max_slowdown_unread = max_slowdown_unread
        self._speeds = speeds
        self.max_partial = max_partial

    def limit(self, num_decoding: int, tokens_left: int, *, is_streamed: bool = True) -> int:
        """Prompt tokens that a step may compute beside `num_decoding` rows, at most `tokens_left`. `is_streamed`: somebody reads the
        tokens of one of those rows as they come."""
        if not num_decoding:
            return tokens_left
        if is_streamed:
            return min(self._max_tokens, self._measured(num_decoding, self._max_slowdown), tokens_left)
        most = self._measured(num_decoding, self._max_slowdown_unread)
        # Never less than beside a stream, where a number is given.
        return min(most if self._max_tokens == UNLIMITED else max(most, self._max_tokens), tokens_left)

    def _measured(self, num_decoding: int, slowdown: float | None) -> int:
        """Tokens with which the step takes less than `slowdown` times as long as without, as far as that is known."""
        if slowdown is None or self._speeds is None:
            return UNLIMITED
        tokens = self._speeds.costs.most_tokens(num_decoding, slowdown - _SPARE)
        return UNLIMITED if tokens is None else max(_LEAST_TOKENS, tokens)

    @property
    def must_pause(self) -> bool:
        """Whether prompts sit the next step out, if a stream decodes, so that what decoding takes is seen again."""
        return self._max_slowdown is not None and self._speeds is not None and self._speeds.wants_decoding

    def for_newcomers(self, wants: Sequence[int], limit: int) -> int:
        """Of `limit` tokens, what prompts may take that enter while prompts that want `wants` are under way."""
        left_over = limit - sum(wants)
        if left_over > 0 or not wants:
            return max(0, left_over)
        return limit // 2 if self.max_partial > 1 else 0

    def split(self, wants: Sequence[int], limit: int, for_shorter: int) -> list[int]:
        """`limit` tokens among prompts under way, first in rank first: up to `for_shorter` go to those shorter than the first."""
        counts = [0] * len(wants)
        if self.max_partial > 1:
            for index in sorted(range(1, len(wants)), key=wants.__getitem__):
                if wants[index] >= wants[0] or for_shorter <= 0:
                    break
                counts[index] = min(wants[index], for_shorter)
                for_shorter -= counts[index]
        left = limit - sum(counts)
        for index, want in enumerate(wants):
            more = min(want - counts[index], left)
            counts[index] += more
            left -= more
        return counts
