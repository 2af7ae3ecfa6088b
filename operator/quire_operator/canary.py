"""Whether a canary's step goes on, has passed, or must be undone, from what routers counted.

The rules, which a platform engineer should be able to retell:

- A step is watched for `intervalSeconds` from the moment when its pods are ready and counting has begun.
- Errors: at any time, if it is 99 % certain that the canary fails more often than `maxErrorPercent` allows and than the stable
  revision fails in the same time; at the end of the step, if it simply did. One or two failed requests never decide.
- Latency: if the 95th percentile of the time to the first token is above the stable revision's by more than
  `maxLatencyIncreasePercent` and by 10 ms (what histograms resolve): at the end of the step from 20 requests of each on, at any time
  from 100 on (a canary begins with a cold prefix cache, so a few slow requests say little).
- Too little traffic: a step with fewer than 20 requests is watched up to three intervals, then passes on what was seen. A service
  that nobody calls passes after one: there is no one to protect, and a service must not hang in a rollout because it is quiet.
- No router answers: the step waits, and time without answers is not counted. Not to know is not the same as to see nothing.

This module must not know pods or status; it is given the step's age and the counts.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt
from typing import Literal

from quire_operator.api.operations import CanarySpec
from quire_operator.decision import CanaryObservation, RevisionCounts

MIN_REQUESTS = 20
"""Requests that a step should see before it passes."""
MIN_ERRORS = 3
"""Fewer never undo a canary."""
MIN_REQUESTS_AT_ONCE = 100
"""Requests of each revision before latency can undo a canary within a step."""
MAX_INTERVALS = 3
"""How much longer than its interval a step waits for MIN_REQUESTS."""
LATENCY_SLACK_S = 0.01
LOOK_EVERY_S = 15.0
"""How often a step that is being watched is looked at."""
_Z_99 = 2.326
"""One-sided 99 %: a step is looked at many times, so a weaker bound would undo a good canary by chance."""
_NOTHING = RevisionCounts()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do with the present step."""

    action: Literal["Wait", "Pass", "Fail"]
    """Wait: look again; Pass: the next step, or all pods; Fail: undo it."""
    message: str
    """What was seen, with numbers."""
    look_again_s: float = LOOK_EVERY_S
    """For Wait: when, in seconds."""


def judge_step(
    spec: CanarySpec,
    *,
    started_at: datetime,
    now: datetime,
    observation: CanaryObservation | None,
    stable: str,
    canary: str,
) -> Verdict:
    """The verdict on a step whose pods were ready at `started_at`."""
    if observation is None or observation.since < started_at:
        return Verdict(action="Wait", message="no router has been asked yet what it observed; the step waits")
    old, new = observation.revisions.get(stable, _NOTHING), observation.revisions.get(canary, _NOTHING)
    watched_s = (min(observation.heard_at or now, now) - observation.since) / timedelta(seconds=1)
    is_over = watched_s >= spec.interval_seconds
    fault = _error_fault(spec, old, new, is_over) or _latency_fault(spec, old, new, is_over)
    seen = _seen(old, new)
    if fault:
        return Verdict(action="Fail", message=f"{fault} ({seen})")
    if not is_over:
        return _wait(f"watched for {_whole(watched_s)} of {spec.interval_seconds} s: {seen}", spec, watched_s)
    if not new.requests and not old.requests:
        return Verdict(action="Pass", message=f"no request came in {_whole(watched_s)} s, so nothing was observed")
    if new.requests >= MIN_REQUESTS:
        return Verdict(action="Pass", message=seen)
    if watched_s >= MAX_INTERVALS * spec.interval_seconds:
        return Verdict(action="Pass", message=f"little traffic in {_whole(watched_s)} s: {seen}")
    return _wait(
        f"waits for {MIN_REQUESTS} requests, at most {MAX_INTERVALS * spec.interval_seconds} s: {seen}", spec, watched_s
    )


def error_rate_lower_bound(errors: int, requests: int) -> float:
    """With 99 % certainty the true rate of errors is above this (Wilson's score interval, one-sided); 0 without requests."""
    if requests <= 0:
        return 0.0
    rate, square = min(errors / requests, 1.0), _Z_99 * _Z_99
    spread = _Z_99 * sqrt(rate * (1 - rate) / requests + square / (4 * requests * requests))
    return max(0.0, (rate + square / (2 * requests) - spread) / (1 + square / requests))


def _error_fault(spec: CanarySpec, old: RevisionCounts, new: RevisionCounts, is_over: bool) -> str:
    if new.errors < MIN_ERRORS:
        return ""
    allowed, stable_rate = spec.max_error_percent / 100, _rate(old)
    surely = error_rate_lower_bound(new.errors, new.requests)
    exceeds = _rate(new) > allowed if is_over else surely > allowed
    if exceeds and surely > stable_rate:
        return (
            f"{_rate(new):.1%} of requests failed, above rollout.canary.maxErrorPercent {spec.max_error_percent} "
            f"and the stable revision's {stable_rate:.1%}"
        )
    return ""


def _latency_fault(spec: CanarySpec, old: RevisionCounts, new: RevisionCounts, is_over: bool) -> str:
    if old.ttft_p95_s is None or new.ttft_p95_s is None:
        return ""
    if min(old.requests, new.requests) < (MIN_REQUESTS if is_over else MIN_REQUESTS_AT_ONCE):
        return ""
    allowed_s = max(
        old.ttft_p95_s * (1 + spec.max_latency_increase_percent / 100),
        old.ttft_p95_s + LATENCY_SLACK_S,
    )
    if new.ttft_p95_s > allowed_s:
        return (
            f"the 95th percentile of the time to first token is {new.ttft_p95_s:.3f} s, above {allowed_s:.3f} s "
            f"(the stable revision's {old.ttft_p95_s:.3f} s and rollout.canary.maxLatencyIncreasePercent "
            f"{spec.max_latency_increase_percent})"
        )
    return ""


def _wait(message: str, spec: CanarySpec, watched_s: float) -> Verdict:
    left_s = spec.interval_seconds - watched_s
    return Verdict(
        action="Wait", message=message, look_again_s=min(LOOK_EVERY_S, left_s) if left_s > 0 else LOOK_EVERY_S
    )


def _rate(counts: RevisionCounts) -> float:
    return min(counts.errors / counts.requests, 1.0) if counts.requests else 0.0


def _seen(old: RevisionCounts, new: RevisionCounts) -> str:
    return f"canary {_counted(new)}, stable {_counted(old)}"


def _counted(counts: RevisionCounts) -> str:
    p95 = "" if counts.ttft_p95_s is None else f", p95 TTFT {counts.ttft_p95_s:.3f} s"
    return f"{counts.requests} requests, {counts.errors} failed{p95}"


def _whole(seconds: float) -> int:
    return int(seconds)
