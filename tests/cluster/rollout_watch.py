"""What a rollout looks like from outside: the steps that status tells, and which revision answered the requests of a load.

Must not know what a test expects.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .installation import Installation
from .load import Load

LABEL_REVISION = "quire.dev/revision"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen at one moment."""

    at_s: float
    """Since the watch began."""
    phase: str
    """Of status.rollout; nothing while there is no rollout."""
    weight: int
    """The canary's share of the traffic in percent, as status says."""
    answered: Counter[str]
    """Requests by revision since the load began."""
    message: str
    """Of status.rollout."""


class RolloutWatch:
    """Looks at one service while a load goes on."""

    def __init__(self, installation: Installation, load: Load) -> None:
        self._installation, self._load = installation, load
        self._began_s = time.monotonic()
        self._revision_of: dict[str, str] = {}
        self.looks: list[Look] = []

    def look(self) -> Look:
        """Takes another look, which is kept."""
        selector = f"quire.dev/service={self._installation.model}"
        for pod in self._installation.get("pods", "-l", selector)["items"]:
            self._revision_of[pod["metadata"]["name"]] = pod["metadata"]["labels"][LABEL_REVISION]
        rollout: dict[str, Any] = self._installation.service_status().get("rollout") or {}
        answered: Counter[str] = Counter()
        for worker, count in self._load.outcome.by_worker.copy().items():
            answered[self._revision_of.get(worker, "unknown")] += count
        seen = Look(
            at_s=time.monotonic() - self._began_s,
            phase=rollout.get("phase", ""),
            weight=rollout.get("weight", 0),
            answered=answered,
            message=rollout.get("message", ""),
        )
        self.looks.append(seen)
        return seen

    def steps(self) -> list[tuple[str, int]]:
        """(phase, weight) in the order in which they came."""
        found: list[tuple[str, int]] = []
        for seen in self.looks:
            if not found or found[-1] != (seen.phase, seen.weight):
                found.append((seen.phase, seen.weight))
        return found

    def share(self, revision: str, weight: int) -> tuple[int, int]:
        """Requests that `revision` and that all answered between the second and the last look at a canary of this weight.

        The second: routers learn of a weight a moment after, or before, status tells it.
        """
        during = [seen.answered for seen in self.looks if (seen.phase, seen.weight) == ("Canary", weight)][1:]
        if len(during) < 2:
            return 0, 0
        return during[-1][revision] - during[0][revision], during[-1].total() - during[0].total()

    def told(self) -> str:
        """The course of it, a line for each change."""
        lines, last = [], None
        for seen in self.looks:
            if (seen.phase, seen.weight) != last:
                last = (seen.phase, seen.weight)
                lines.append(
                    f"{seen.at_s:6.1f} s  {seen.phase or 'no rollout'} {seen.weight} %  {dict(seen.answered)}  {seen.message}"
                )
        return "\n".join(lines)
