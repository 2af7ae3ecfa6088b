"""What an answer without a length of its own may use: never more than its tenant can pay, though only a usual answer was reserved for it.

    a stream        more is reserved while it runs; it ends where a quota or the balance does
    a whole answer  its worker is told a length, if what is left is less than the model's

A minute's limit ends nobody's answer: what goes beyond it keeps the tenant's later requests waiting. Knows meters and requests, no sockets.
"""

import math
from collections.abc import Callable, Mapping

import msgspec

from quire_contract import names
from quire_contract.openai.requests import RoutingFields
from quire_router.call import Call
from quire_router.limits.accounts import LimitsUnavailableError
from quire_router.limits.meter import Meter, RefusedError
from quire_router.limits.meters import TenantMeters
from quire_router.splitting import with_field

MIN_PORTION = 16
"""Fetched at once, at least: each may be a question to Redis."""
MAX_MARGIN = 64
"""More is reserved when so many tokens of output are left, so that no token waits for it."""
FIELD_OF_LENGTH: Mapping[str, str] = {names.PATH_CHAT: "max_tokens", names.PATH_RESPONSES: "max_output_tokens"}
"""What bounds an answer; other APIs have a bound of their own always."""

CostOf = Callable[[int], int]
"""Billionths of the currency for so many tokens of output, the prompt included."""


def is_unbounded(fields: RoutingFields | None) -> bool:
    """Whether an answer may be as long as the model can."""
    if fields is None or fields.messages is None:
        return False
    return fields.max_tokens is None and fields.max_completion_tokens is None


class Allowance:
    """Of one stream that runs. `demands` are its reservations, and grow here."""

    __slots__ = ("_cost", "_demands", "_look_at", "_meters", "_output", "_portion")

    def __init__(
        self, meters: TenantMeters, demands: list[tuple[Meter, int]], *, output: int, portion: int, cost: CostOf
    ) -> None:
        """`output`: tokens that were reserved for it. `portion`: how many are fetched at once."""
        self._meters = meters
        self._demands = demands
        self._output = output
        self._portion = max(MIN_PORTION, portion)
        self._cost = cost
        self._look_at: float = output - min(MAX_MARGIN, output // 2)

    def is_short(self, num_output: int) -> bool:
        """Whether `extend` should be asked, now that there are so many tokens of output."""
        return num_output >= self._look_at

    async def extend(self, num_output: int) -> None:
        """Reserve more. RefusedError if not even what was used is left, so that an answer that fits exactly ends by itself."""
        least = max(1, num_output + 1 - self._output)
        more = least - 1 + self._portion
        while True:
            try:
                await self._reserve(more)
            except LimitsUnavailableError:  # a store that is away ends nothing that runs: it is counted in the end
                self._look_at = math.inf
                return
            except RefusedError:
                if more > least:
                    more = max(least, more // 2)
                elif num_output > self._output:
                    raise
                else:
                    self._look_at = self._output + 1  # to its very end
                    return
            else:
                self._output += more
                self._look_at = self._output - min(MAX_MARGIN, more // 2)
                return

    async def _reserve(self, more: int) -> None:
        meters, balance, minute = self._meters, self._meters.balance, self._meters.tokens
        wanted = {meter: more for meter, _ in self._demands if meter is not balance and meter is not minute}
        for meter, reserved in self._demands:
            if meter is balance:
                wanted[balance] = max(0, self._cost(self._output + more) - reserved)
        asked = list(wanted.items())
        if not meters.try_reserve(asked):
            await meters.reserve(asked)
        for i, (meter, reserved) in enumerate(self._demands):
            number = wanted.get(meter, 0)
            if meter is minute and meters.try_reserve([(minute, more)]):
                number = more
            self._demands[i] = (meter, reserved + number)


def payable(meters: TenantMeters, demands: list[tuple[Meter, int]], *, prompt: int, cost: CostOf) -> float:
    """Tokens of output for which quotas and balance suffice now, what was reserved included."""
    most = math.inf
    for meter, reserved in demands:
        left = meter.remaining + reserved
        if meter is meters.balance:
            most = min(most, _bought(left, cost))
        elif meter is not meters.tokens:
            most = min(most, left - prompt)
    return most


_MANY = 1_000_000
"""Tokens; a price is for so many."""


def _bought(money: int, cost: CostOf) -> float:
    base = cost(0)
    each = cost(_MANY) - base
    return math.inf if each <= 0 else max(0, money - base) * _MANY // each


def with_length(call: Call, most: int) -> Call:
    """The call with a bound on each of its choices."""
    assert call.fields is not None, "only what generates has a length"
    body = with_field(call.body, FIELD_OF_LENGTH[call.path], most)
    return msgspec.structs.replace(call, body=body, fields=msgspec.structs.replace(call.fields, max_tokens=most))
