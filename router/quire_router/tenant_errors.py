"""What a limit's refusal looks like: OpenAI's errors and headers. Anthropic's form is made of them by path, as of every error."""

import math
from collections.abc import MutableMapping

from quire_contract.openai.errors import CODE_QUOTA, CODE_RATE_LIMIT, TYPE_RATE_LIMIT, ApiError, unavailable
from quire_router.limits.meter import Meter, RefusedError
from quire_router.limits.metering import WHOLE_WINDOW, metering
from quire_router.limits.meters import TenantMeters
from quire_router.prices import decimal_of

CODE_LIMITS_UNAVAILABLE = "limits_unavailable"
_WINDOW_S = 60
_WORDS = {
    "requests": "requests a minute",
    "concurrency": "requests at the same time",
    "tokens": "tokens a minute",
    "tokens_day": "tokens a day (UTC)",
    "tokens_month": "tokens a month (UTC)",
}


_HEADERS = {
    kind: tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}


def refused(error: RefusedError, meters: TenantMeters) -> ApiError:
    """429. Retry-After is when the same request would pass, as far as is known; without it, it would not, as things stand."""
    meter = error.meter
    if meter.name == "balance":
        return _refusal(CODE_QUOTA, f"The prepaid balance does not cover this request: {_balance(meter)}.", None)
    limit = meter.limit or 0
    words = _WORDS[meter.name]
    used = max(0, limit - meter.remaining)
    asked = f"limit {limit}, used {min(used, limit)}, requested {error.demand}"
    if math.isinf(error.wait_s):
        message = (
            f"This request alone is larger than the limit of {words}: {asked}. Lower max_tokens or shorten the prompt."
        )
        return _refusal(CODE_RATE_LIMIT, message, None)
    wait_s = error.wait_s
    is_quota = meter.name in ("tokens_day", "tokens_month")
    if is_quota and meter.known + error.demand > limit:
        wait_s = meters.period_wait_s[meter.name == "tokens_month"]
    seconds = max(1, math.ceil(wait_s))
    message = f"The limit of {words} is reached: {asked}. Try again in {seconds} s."
    return _refusal(CODE_QUOTA if is_quota else CODE_RATE_LIMIT, message, seconds)


def used_up(error: RefusedError) -> ApiError:
    """For the event that ends a stream: no token more is left to its tenant."""
    meter = error.meter
    what = "prepaid balance" if meter.name == "balance" else f"limit of {_WORDS[meter.name]}"
    message = f"The answer ends here: the {what} is used up. What was sent is good; set max_tokens for shorter answers."
    return ApiError(429, message, type=TYPE_RATE_LIMIT, code=CODE_QUOTA)


def limits_unavailable() -> ApiError:
    """503: limits cannot be looked at, and the release would rather refuse than guess."""
    return unavailable(
        "The router cannot reach the store of its tenants' limits now.", code=CODE_LIMITS_UNAVAILABLE, retry_after_s=1
    )


def show_limit(headers: MutableMapping[str, str], meter: Meter, kind: str, reset_s: float = _WINDOW_S) -> None:
    """OpenAI's x-ratelimit-* headers. `kind`: requests or tokens. Reset: until all of the limit is there again if nothing more is asked."""
    quick, words = metering(), _HEADERS[kind]
    if quick is not None and reset_s == _WINDOW_S and quick.show(headers, meter, words):
        return
    limit, remaining, reset = words
    headers[limit] = meter.limit_text
    headers[remaining] = str(meter.remaining)
    headers[reset] = WHOLE_WINDOW if reset_s == _WINDOW_S else duration(reset_s)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 250ms, 1s, 6m0s, 1h0m5s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _refusal(code: str, message: str, retry_after_s: int | None) -> ApiError:
    headers = {"x-should-retry": "false"} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return ApiError(429, message, type=TYPE_RATE_LIMIT, code=code, headers=headers)


def _balance(meter: Meter) -> str:
    limit = meter.limit or 0
    return f"{decimal_of(meter.remaining)} of {decimal_of(limit)} left"
