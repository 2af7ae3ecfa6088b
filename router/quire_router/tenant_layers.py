"""The layers that hold tenants to their limits, and write down what they used.

    RequestLimits: a minute's requests and those at the same time   |   reserved before, settled when the answer is closed
    TokenLimits:   tokens, balance, usage records                   |

What is reserved for tokens is the prompt and the longest answer that was asked for; what is settled is what was used. A request that fails
by no fault of its sender gives everything back. It must not know where limits and records are kept.
"""

import itertools
from collections.abc import Awaitable, Callable, MutableMapping

import msgspec

from quire_contract import names
from quire_contract.error_form import broken_stream
from quire_contract.openai.errors import ApiError
from quire_contract.openai.requests import DEFAULT_COMPLETION_MAX_TOKENS, RoutingFields, prompt_list
from quire_router.allowance import FIELD_OF_LENGTH, Allowance, is_unbounded, payable, with_length
from quire_router.answer import Answer, Source
from quire_router.call import STATUS_CLIENT_GONE, STATUS_FAILED, Call, Outcome, Tenant, Usage
from quire_router.clocks import Clocks
from quire_router.limits.accounts import LimitsUnavailableError
from quire_router.limits.book import MeterBook
from quire_router.limits.meter import Demands, Meter, RefusedError
from quire_router.limits.meters import TenantMeters
from quire_router.live_config import LiveConfig
from quire_router.native.library import native
from quire_router.prices import Price, Prices
from quire_router.prompts import BYTES_PER_TOKEN
from quire_router.seen import Seen, seeing, watching, watching_bytes
from quire_router.tenant_errors import limits_unavailable, refused, show_limit, used_up
from quire_router.tenant_metrics import TenantMetrics
from quire_router.usage.reading import body_reader
from quire_router.usage.record import UsageStore

STATUS_BROKEN = 502
_FREE_PATHS = frozenset({names.PATH_TOKENIZE, names.PATH_DETOKENIZE, names.PATH_COUNT_TOKENS})
"""Nothing is computed there that tokens are counted for."""


class RequestLimits:
    """The outer layer."""

    def __init__(self, book: MeterBook, metrics: TenantMetrics) -> None:
        self._book = book
        self._metrics = metrics

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer. ApiError 429 if there are too many requests."""
        return inner(call, outcome) if call.tenant is None else self._limited(call, outcome, inner, call.tenant)

    async def _limited(self, call: Call, outcome: Outcome, inner: Source, tenant: Tenant) -> Answer:
        meters = self._book.of(tenant.entry)
        demands = meters.request_demands()
        if not demands:
            return await inner(call, outcome)
        if not meters.try_reserve(demands, refills=True):
            await _reserve(meters, demands, tenant, self._metrics)
        limited = meters.requests if meters.requests.limit is not None else None
        counted = 1
        is_open = False
        try:
            answer = await inner(call, outcome)
            if not _counts(answer.status):
                counted = int(_ran_out(answer.reason(), outcome))
            if limited is not None:
                show_limit(answer.added_headers, limited, "requests")
            if answer.body is None:
                is_open = True
                return _closing(answer, lambda: _settle_requests(meters, demands, outcome.late_status or answer.status))
            return answer
        except ApiError as error:
            counted = int(_counts(error.status) or _ran_out(_reason(error), outcome))
            if limited is not None:
                show_limit(error.headers, limited, "requests")
            raise
        finally:
            if not is_open:
                meters.settle_each(demands, counted)


class TokenLimits:
    """The inner layer: it sees the prompt as it was read."""

    def __init__(
        self,
        *,
        book: MeterBook,
        prices: Prices,
        usage: UsageStore,
        metrics: TenantMetrics,
        live: LiveConfig,
        router_id: str,
        clocks: Clocks,
        model_length: Callable[[str], int | None],
    ) -> None:
        """`router_id`: unique to this life of the process. `model_length`: of prompt and output, in tokens, by a model's name; None: not
        known now."""
        self._book = book
        self._prices = prices
        self._usage = usage
        self._metrics = metrics
        self._live = live
        self._router_id = router_id
        self._clock, self._wall_clock = clocks.monotonic, clocks.wall
        self._model_length = model_length
        self._usage_of = body_reader(native())
        self._numbers = itertools.count(1)

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer. ApiError 429 if it might use more than is left."""
        return inner(call, outcome) if call.tenant is None else self._limited(call, outcome, inner, call.tenant)

    async def _limited(self, call: Call, outcome: Outcome, inner: Source, tenant: Tenant) -> Answer:
        bill = self._bill(call, tenant)
        if bill.demands and not bill.meters.try_reserve(bill.demands, refills=True):
            await _reserve(bill.meters, bill.demands, tenant, self._metrics)
        length = self._length(call, bill) if bill.has_quota and not call.is_stream else None
        try:
            answer = await inner(call if length is None else with_length(call, length), outcome)
        except ApiError as error:
            bill.show(error.headers)
            self._close(bill, outcome, error.status, bill.begun(outcome), reason=_reason(error))
            raise
        except BaseException as error:
            status = STATUS_FAILED if isinstance(error, Exception) else STATUS_CLIENT_GONE
            self._close(bill, outcome, status, bill.begun(outcome))
            raise
        bill.show(answer.added_headers)
        if length is not None:
            answer.added_headers[names.HEADER_MAX_TOKENS] = str(length)
        if answer.body is not None:
            used = outcome.usage or self._usage_of(answer.body) or bill.estimate(0)
            status = answer.status
            self._close(bill, outcome, status, used, reason=None if status < 400 else answer.reason())
            return answer
        return self._watched(answer, bill, outcome)

    def _bill(self, call: Call, tenant: Tenant) -> "_Bill":
        """What is to be reserved."""
        meters = self._book.of(tenant.entry)
        prompt, output = _prompt_tokens(call), self._most_output(call)
        demands: list[tuple[Meter, int]] = []
        for meter in meters.token_meters():
            demands.append((meter, prompt + output))
        if meters.balance.limit is not None:
            most = Usage(prompt=prompt, output=output)
            demands.append((meters.balance, max(self._cost(target, most) for target in call.targets)))
        return _Bill(call, tenant, meters, demands, prompt, output, meters.has_quota)

    def _length(self, call: Call, bill: "_Bill") -> int | None:
        """To be told to the worker of a whole answer, which nobody sees grow. None: it needs none, or the model's own is not known."""
        if not is_unbounded(call.fields) or call.path not in FIELD_OF_LENGTH:
            return None
        lengths = [length for target in call.targets if (length := self._model_length(target)) is not None]
        most = payable(bill.meters, bill.demands, prompt=bill.prompt, cost=self._cost_of(bill))
        if not lengths or most >= (max(lengths) - bill.prompt) * bill.num_choices:
            return None
        return max(1, min(int(most) // bill.num_choices, min(lengths) - bill.prompt))

    def _cost_of(self, bill: "_Bill") -> Callable[[int], int]:
        def cost(output: int) -> int:
            most = Usage(prompt=bill.prompt, output=output)
            return max(self._cost(target, most) for target in bill.call.targets)

        return cost

    def _allowance(self, bill: "_Bill") -> Allowance | None:
        """None: it can use no more than it has reserved, or nothing that it uses up would be missing."""
        if not bill.has_quota or not is_unbounded(bill.call.fields):
            return None
        portion = self._live.settings.limits.default_output_tokens
        return Allowance(bill.meters, bill.demands, output=bill.output, portion=portion, cost=self._cost_of(bill))

    def _watched(self, answer: Answer, bill: "_Bill", outcome: Outcome) -> Answer:
        assert answer.parts is not None, "a whole answer has been settled"
        seen = Seen(outcome, self._allowance(bill) if answer.is_events else None)

        def tell(error: RefusedError) -> bytes:
            self._metrics.reject(bill.tenant.entry.id, error.meter.name)
            refusal = used_up(error)
            outcome.problem, outcome.is_cut = refusal.message, True
            return broken_stream(refusal, bill.call.path, bill.call.request_id, seen.events.num_events)

        watched = watching(answer.parts, seen, tell) if answer.is_events else watching_bytes(answer.parts, seen)

        def settle() -> None:
            status = outcome.late_status or answer.status
            if not (seen.is_complete or outcome.is_cut) and status < 400:
                status = STATUS_BROKEN if seen.is_broken else STATUS_CLIENT_GONE
            used = outcome.usage or seen.events.usage() or bill.estimate(seen.events.num_events)
            self._close(bill, outcome, status, used)

        seen_answer = answer.through(watched)
        if answer.is_events and answer.attach is not None:
            seen_answer.attach = seeing(answer.attach, seen)
        return _closing(seen_answer, settle)

    def _close(self, bill: "_Bill", outcome: Outcome, status: int, used: Usage, *, reason: str | None = None) -> None:
        """Settle what was reserved, and write it down. `reason`: why it was refused."""
        call, tenant_id = bill.call, bill.tenant.entry.id
        served = outcome.target or ""
        tokens = cost = 0
        if status >= 400 and status != STATUS_CLIENT_GONE and not _ran_out(reason, outcome):
            used = used if status == STATUS_BROKEN else Usage()
        elif not outcome.cached_answer:
            tokens, cost = used.prompt + used.output, self._cost(served or call.targets[0], used)
        bill.settle(tokens, cost)
        self._metrics.count(tenant_id, status, used, cost)
        self._usage.add(
            (
                tenant_id,
                call.model,
                self._wall_clock(),
                self._clock() - call.arrived_s,
                used.prompt,
                used.cached,
                used.output,
                cost,
                self._router_id,
                next(self._numbers),
                bill.tenant.key_id,
                call.request_id,
                served,
                call.path,
                status,
                outcome.cached_answer,
            )
        )

    def _cost(self, model: str, used: Usage) -> int:
        price: Price | None = self._prices.of(model)
        return 0 if price is None else price.cost(used)

    def _most_output(self, call: Call) -> int:
        fields = call.fields
        if fields is None:
            return 0
        most = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
        if most is None:
            is_chat = fields.messages is not None
            most = self._live.settings.limits.default_output_tokens if is_chat else DEFAULT_COMPLETION_MAX_TOKENS
        if fields.messages is not None and fields.n is None and most > 0:
            return most
        return max(0, most) * max(1, fields.n or 1) * _num_prompts(fields)


class _Bill(msgspec.Struct, frozen=True, gc=False):
    """What a request reserved."""

    call: Call
    tenant: Tenant
    meters: TenantMeters
    demands: list[tuple[Meter, int]]
    prompt: int
    output: int
    has_quota: bool
    """As of the meters when it was made."""

    @property
    def num_choices(self) -> int:
        """Of its one prompt."""
        return 1 if self.call.fields is None else max(1, self.call.fields.n or 1)

    def estimate(self, num_events: int) -> Usage:
        """Where nobody says what was used: the prompt as it was read or guessed, and a token for each event."""
        return Usage(prompt=self.prompt, output=num_events)

    def begun(self, outcome: Outcome) -> Usage:
        """Of a request that ended before its answer began: a worker that has got it has read the prompt."""
        return self.estimate(0) if outcome.attempts else Usage()

    def settle(self, tokens: int, cost: int) -> None:
        """This is what it used."""
        demands, balance = self.demands, self.meters.balance
        if not cost and not self.has_quota:  # as usual
            self.meters.settle_each(demands, tokens)
            return
        told: list[tuple[Meter, int | None]] = list(demands)
        spent = [cost if meter is balance else tokens for meter, _ in demands]
        if cost and not any(meter is balance for meter, _ in demands):
            told.append((balance, None))  # counted, should the tenant pay in advance one day
            spent.append(cost)
        self.meters.settle(told, spent)

    def show(self, headers: MutableMapping[str, str]) -> None:
        """The headers about tokens: of the minute's limit, or else of the shortest quota."""
        if self.demands and (meter := self.demands[0][0]) is not self.meters.balance:
            reset_s = 60.0
            if meter is not self.meters.tokens:
                reset_s = self.meters.period_wait_s[meter.name == "tokens_month"]
            show_limit(headers, meter, "tokens", reset_s)


def _closing(answer: Answer, settle: Callable[[], None]) -> Answer:
    """This answer, that settles when it is closed: also if no part was ever taken."""

    async def close() -> None:
        try:
            await answer.close()
        finally:
            settle()

    return Answer(
        status=answer.status,
        headers=answer.headers,
        parts=answer.parts,
        is_events=answer.is_events,
        release=close,
        attach=answer.attach,
    )


async def _reserve(meters: TenantMeters, demands: Demands, tenant: Tenant, metrics: TenantMetrics) -> None:
    """What is not at hand. ApiError 429 if it is too much, 503 if nobody can say."""
    try:
        await meters.reserve(demands)
        meters.refill_early(demands)
    except RefusedError as error:
        metrics.reject(tenant.entry.id, error.meter.name)
        refusal = refused(error, meters)
        if error.meter in (meters.requests, meters.tokens):
            show_limit(refusal.headers, error.meter, error.meter.name, min(error.wait_s, 60.0))
        raise refusal from None
    except LimitsUnavailableError:
        metrics.reject(tenant.entry.id, "unavailable")
        raise limits_unavailable() from None


def _settle_requests(meters: TenantMeters, demands: Demands, status: int) -> None:
    meters.settle_each(demands, _counts(status))


def _counts(status: int) -> int:
    """Whether a request with this end counts: not if we failed, or refused it for want of room or of tokens."""
    return 0 if status >= 500 or status == 429 else 1


def _reason(error: ApiError) -> str | None:
    return error.headers.get(names.HEADER_REASON)


def _ran_out(reason: str | None, outcome: Outcome) -> bool:
    """Whether the time that the sender gave was over while a worker computed: free computing for whoever gives too little."""
    return outcome.attempts > 0 and reason == names.REASON_DEADLINE


def _prompt_tokens(call: Call) -> int:
    """Of all prompts: as read, or a guess by size."""
    if call.path in _FREE_PATHS:
        return 0
    fields = call.fields
    if fields is None:
        return len(call.body) // BYTES_PER_TOKEN
    if fields.messages is None and fields.prompt is not None:
        prompts = prompt_list(fields.prompt)
        if len(prompts) > 1:
            return sum(len(p) if isinstance(p, list) else len(p.encode()) // BYTES_PER_TOKEN + 1 for p in prompts)
    prompt = call.prompt
    if prompt is None:
        return len(call.body) // BYTES_PER_TOKEN
    blocks = next(iter(prompt.by_digest.values()), prompt.text)
    return len(call.body) // BYTES_PER_TOKEN if blocks is None else blocks.num_tokens


def _num_prompts(fields: RoutingFields) -> int:
    return 1 if fields.messages is not None or fields.prompt is None else len(prompt_list(fields.prompt))
