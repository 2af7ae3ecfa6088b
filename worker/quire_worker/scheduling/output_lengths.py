"""How many more tokens a choice will likely bring, learnt from those that ended.

Knows lengths only: not whose they are, nor what was said, so that one tenant's requests tell another's nothing but the mix.

A life table (actuarial estimate, Kaplan and Meier 1958) over buckets half an octave wide: the chance that an output which reached a bucket
ends in it. A choice that was cut off (by its max_tokens, an abort, a deadline) counts as alive until then and as no end, so short limits
do not pass for short answers. Conditioning on what was generated so far is what tells a long runner from a short one when nothing else
does: least attained service, as FastServe's skip-join queues use it (Wu et al., 2023, https://arxiv.org/abs/2305.05920); lengths need only
be ranked (Fu et al., 2024, https://arxiv.org/abs/2408.15792).
"""

from bisect import bisect_right
from math import exp, log

_PRIOR_MEAN = 256.0
"""Tokens of an output before anything was seen; the guess weighs as much as one choice."""
_EDGES = [0, 1, 2, 3, *(round(2 ** (k / 2)) for k in range(4, 42))]
_NEGLIGIBLE = 1e-3
_FORGET_AFTER = 500
"""Ends after which what was seen before counts half."""


class OutputLengths:
    """Lengths of finished outputs, newest counting most."""

    def __init__(self) -> None:
        self._entered = [0.0] * len(_EDGES)
        self._ended = [0.0] * len(_EDGES)
        self._cut = [0.0] * len(_EDGES)
        self._num_seen = 0

    def observe(self, length: int, *, of_itself: bool) -> None:
        """An output ended after `length` tokens, `of_itself` or cut off."""
        last = min(bisect_right(_EDGES, max(0, length - 1)), len(_EDGES) - 1) - 1
        for bucket in range(last + 1):
            self._entered[bucket] += 1
        (self._ended if of_itself else self._cut)[last] += 1
        self._num_seen += 1
        if self._num_seen == _FORGET_AFTER:
            self._num_seen = 0
            for counts in (self._entered, self._ended, self._cut):
                counts[:] = [count / 2 for count in counts]

    def expected_more(self, generated: int, at_most: int) -> float:
        """Tokens still to come of an output that has `generated` and cannot bring more than `at_most` others."""
        if generated >= _EDGES[-1]:
            return float(at_most)
        position, end = generated, min(generated + at_most, _EDGES[-1])
        bucket = bisect_right(_EDGES, position) - 1
        expected, alive = 0.0, 1.0
        while position < end and alive > _NEGLIGIBLE:
            edge = min(_EDGES[bucket + 1], end)
            hazard = self._hazard(bucket)
            survives = exp(-hazard * (edge - position))
            expected += alive * (1.0 - survives) / hazard
            alive *= survives
            position = edge
            bucket += 1
        return expected

    def _hazard(self, bucket: int) -> float:
        """The chance per token to end inside the bucket; one imagined choice ends as the prior says."""
        width = _EDGES[bucket + 1] - _EDGES[bucket]
        imagined = 1.0 - exp(-width / _PRIOR_MEAN)
        ends = (self._ended[bucket] + imagined) / (self._entered[bucket] - self._cut[bucket] / 2 + 1.0)
        return -log(max(1.0 - ends, _NEGLIGIBLE)) / width
