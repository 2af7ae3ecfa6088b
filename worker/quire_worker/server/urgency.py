"""How urgent a request is: its priority, and how long it may wait and take. From its body, the server's limits and what a router says.

Behind a router, the router knows what a tenant may ask for: a body can make its request less urgent than the header says, never more, and
a server's own time limits can be shortened, never lengthened. Must not know how requests are scheduled.
"""

import dataclasses
import re
from collections.abc import Mapping

from quire_contract import names
from quire_contract.openai.errors import invalid
from quire_contract.openai.requests import GenerationRequest

_PRIORITY = re.compile(r"-?[0-9]{1,15}")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Urgency:
    """Of one request. Times are seconds since it arrived; None: as long as it takes."""

    priority: int = 0
    """Lower first."""
    timeout_s: float | None = None
    queue_timeout_s: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class UrgencyRules:
    """What this server lets requests say."""

    takes_priority: bool = False
    """Whether requests are scheduled by priority."""
    timeout_s: float = 0.0
    """A request's time at most; 0: no limit."""
    queue_timeout_s: float = 0.0
    """Its time in the queue at most; 0: no limit."""

    def decide(self, body: GenerationRequest | None, headers: Mapping[str, str], *, trusted: bool) -> Urgency:
        """The urgency of a checked body; `trusted` headers are a router's. ApiError 400 names the field or header that is wrong.

        None: a body that has nothing to say of it."""
        own = Urgency()
        if body is not None:
            own = Urgency(priority=body.priority or 0, timeout_s=body.timeout_s, queue_timeout_s=body.queue_timeout_s)
        priority, deadline_s = own.priority, None
        if trusted:
            priority = self._routed_priority(priority, headers.get(names.HEADER_PRIORITY))
            deadline_s = _seconds(headers.get(names.HEADER_DEADLINE))
        elif priority and not self.takes_priority:
            raise invalid(
                "priority", "needs a server that was started with --scheduling-policy priority; leave it out or send 0"
            )
        return Urgency(
            priority=priority,
            timeout_s=_shortest(own.timeout_s, deadline_s, self.timeout_s or None),
            queue_timeout_s=_shortest(own.queue_timeout_s, self.queue_timeout_s or None),
        )

    def _routed_priority(self, wanted: int, header: str | None) -> int:
        """A tenant's priority holds on every worker of a fleet; one that does not schedule by it leaves it aside."""
        if header is not None and not _PRIORITY.fullmatch(header):
            raise invalid(names.HEADER_PRIORITY, "must be a whole number of at most 15 digits")
        return max(int(header or 0), wanted) if self.takes_priority else 0


def left(limit_s: float | None, spent_s: float) -> float | None:
    """Of a limit, when so much time is gone."""
    return None if limit_s is None else max(0.0, limit_s - spent_s)


def _seconds(header: str | None) -> float | None:
    if header is None:
        return None
    if not _SECONDS.fullmatch(header):
        raise invalid(names.HEADER_DEADLINE, "must be the seconds that are left, such as 12.5")
    return float(header)


def _shortest(*seconds: float | None) -> float | None:
    return min((value for value in seconds if value is not None), default=None)
