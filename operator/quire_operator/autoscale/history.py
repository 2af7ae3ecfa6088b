"""What earlier decisions left behind that later ones need. Immutable: `decide` answers with the next one.

A new process begins with `History.begin`: the present number counts as a recommendation of now, so that nothing goes down before a whole
window has been seen (HPA does the same).
"""

from dataclasses import dataclass, replace
from typing import Self

from quire_operator.autoscale.outlook import Learned

NEW_S = 60.0
"""A service that is seen for the first time and is no older was made just now; an older one was served by another process before."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the targets alone asked for."""

    at_s: float
    replicas: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that was made, for rate limits."""

    at_s: float
    amount: int
    """Replicas added or removed; positive."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Of one service. Times are on the clock of `now_s`, in seconds."""

    created_s: float
    """When the service was created."""
    last_active_s: float | None = None
    """When demand was last above activation; None: never."""
    recommendations: tuple[Recommendation, ...] = ()
    ups: tuple[Change, ...] = ()
    downs: tuple[Change, ...] = ()
    demands: tuple[tuple[float, float], ...] = ()
    """(at_s, demand) over the panic window."""
    panic_until_s: float | None = None
    begun_s: float | None = None
    """When this process first saw a service that is older than that; None: it has seen all of it."""
    capacity: int | None = None
    """What engines told last of what one replica runs at once."""
    loading_since_s: float | None = None
    """Since when replicas load without a break and without a new one among them; None: none does."""
    loaded_s: float | None = None
    """When a replica was last loading that counted as capacity to come."""
    start_s: float | None = None
    """How long the last start took, as told or as seen."""
    learned: Learned | None = None
    """What requests are like."""

    @classmethod
    def begin(cls, *, created_s: float, replicas: int, now_s: float, last_active_s: float | None = None) -> Self:
        """Of a service that this process has not seen before."""
        first = Recommendation(at_s=now_s, replicas=replicas)
        begun_s = now_s if now_s - created_s > NEW_S else None
        return cls(created_s=created_s, last_active_s=last_active_s, recommendations=(first,), begun_s=begun_s)

    def until(self, now_s: float) -> Self:
        """Without times to come: a clock that was set back leaves them, and they would hold for as long as it was wrong."""
        times = [one.at_s for one in self.recommendations] + [one.at_s for one in (*self.ups, *self.downs)]
        times += [one for one in (self.last_active_s, self.loaded_s, self.begun_s) if one is not None]
        if max(times, default=now_s) <= now_s:
            return self
        return replace(
            self,
            last_active_s=None if self.last_active_s is None else min(self.last_active_s, now_s),
            recommendations=tuple(replace(one, at_s=min(one.at_s, now_s)) for one in self.recommendations),
            ups=tuple(replace(one, at_s=min(one.at_s, now_s)) for one in self.ups),
            downs=tuple(replace(one, at_s=min(one.at_s, now_s)) for one in self.downs),
            demands=(),
            panic_until_s=None,
            loading_since_s=None if self.loading_since_s is None else min(self.loading_since_s, now_s),
            loaded_s=None if self.loaded_s is None else min(self.loaded_s, now_s),
            begun_s=None if self.begun_s is None else min(self.begun_s, now_s),
            learned=None,
        )
