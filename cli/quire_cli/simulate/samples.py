"""Percentiles of what was seen: histograms with logarithmic buckets for what is too many to keep, sorting for the rest."""

from collections.abc import Sequence
from math import ceil, log

_PER_OCTAVE = 24
"""Buckets: about 3 % wide."""
_LEAST_S = 1e-5
_SCALE = _PER_OCTAVE / log(2.0)


class Histogram:
    """Of times in seconds, weighted."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.num = 0
        self._sum = 0.0

    @property
    def mean(self) -> float:
        """0.0 of none."""
        return self._sum / self.num if self.num else 0.0

    def add(self, value_s: float, count: int) -> int:
        """`count` observations of `value_s`. The bucket that they are in."""
        bucket = int(_SCALE * log(value_s / _LEAST_S)) if value_s > _LEAST_S else 0
        self.add_to(bucket, value_s, count)
        return bucket

    def add_to(self, bucket: int, value_s: float, count: int) -> None:
        """The same where the bucket is known."""
        self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.num += count
        self._sum += value_s * count

    def percentile(self, share: float) -> float:
        """The value that `share` of the observations do not exceed, to about 3 %; 0.0 of none."""
        wanted = share * self.num
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return _LEAST_S * float(2.0 ** ((bucket + 0.5) / _PER_OCTAVE))
        return 0.0


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank of an ordered sequence; 0.0 of an empty one."""
    if not ordered:
        return 0.0
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
