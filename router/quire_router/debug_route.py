"""What /debug/route shows: the last choices and why, and the endpoints as the router sees them. Never a prompt.

?limit=N       at most N choices, newest first (default 20)
?explain=1     with the score of every candidate, the split between revisions that came before, and how a route's model was chosen
?request_id=X  only choices for this request
"""

from collections.abc import Iterable, Mapping
from typing import Any

from quire_contract.openai.errors import invalid
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.kv_index import KvIndex
from quire_router.picker import Decision
from quire_router.route_plan import RoutePlan
from quire_router.scoring import Score

DEFAULT_LIMIT = 20
MAX_LIMIT_DIGITS = 9


def explain_decisions(
    decisions: Iterable[Decision], query: Mapping[str, str], plans: Mapping[str, RoutePlan]
) -> list[dict[str, Any]]:
    """The choices that `query` asks for, newest first. `decisions` are oldest first, `plans` by request id. ApiError 400: a bad limit."""
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not limit.isdecimal() or len(limit) > MAX_LIMIT_DIGITS:
        raise invalid("limit", f"{limit[:20]!r} is not a number of at most {MAX_LIMIT_DIGITS} digits")
    wanted = query.get("request_id")
    explain = query.get("explain", "0") not in ("", "0", "false")
    found = [d for d in reversed(list(decisions)) if wanted is None or d.request_id == wanted]
    return [_decision(d, explain, plans.get(d.request_id)) for d in found[: int(limit)]]


def describe_endpoints(pool: EndpointPool, index: KvIndex, now_s: float) -> list[dict[str, Any]]:
    """The state that choices are made from."""
    return [_endpoint(endpoint, index, now_s, pool.settings.choice.slow_start_s) for endpoint in pool]


def _decision(decision: Decision, explain: bool, plan: RoutePlan | None) -> dict[str, Any]:
    choice = decision.choice
    shown: dict[str, Any] = {
        "ts": decision.ts,
        "request_id": decision.request_id,
        "model": decision.model,
        "attempt": decision.attempt,
        "endpoint": choice.endpoint_id,
        "policy": decision.policy,
        "level": choice.level,
        "matched_tokens": choice.matched_tokens,
        "prompt_tokens": choice.num_tokens,
        "reason": choice.reason,
    }
    if explain:
        if plan is not None:
            shown["route"] = plan.shown()
        if decision.split is not None:
            split = decision.split
            by = "sticky" if split.is_sticky else "weight"
            shown["split"] = {"revision": split.revision, "weights": dict(split.weights), "chosen_by": by}
        shown["candidates"] = [_score(score) for score in choice.scores]
    return shown


def _score(score: Score) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "endpoint": score.endpoint_id,
        "matched_tokens": score.matched_tokens,
        "load": score.load,
        "prefill_ms": round(score.prefill_ms, 3),
        "promised_ms": round(score.promised_ms, 3),
        "decode_ms": round(score.decode_ms, 3),
        "blocks_ms": round(score.blocks_ms, 3),
        "adapter_ms": round(score.adapter_ms, 3),
        "cost_ms": round(score.cost_ms, 3),
    }
    return shown if score.dropped is None else shown | {"dropped": score.dropped}


def _endpoint(endpoint: Endpoint, index: KvIndex, now_s: float, slow_start_s: float) -> dict[str, Any]:
    report = endpoint.report
    load, promised_tokens = endpoint.load()
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "service": endpoint.entry.service,
        "revision": endpoint.entry.revision,
        "role": endpoint.entry.role,
        "ready": endpoint.ready,
        "why_not": endpoint.why_not,
        "draining": endpoint.draining,
        "ejected": endpoint.health.is_ejected,
        "failures_in_a_row": endpoint.health.failures,
        "back_in_s": round(max(0.0, endpoint.health.until_s - now_s), 1) if endpoint.health.is_ejected else None,
        "bundle": endpoint.digest,
        "events_in_step": endpoint.synced,
        "blocks_known": index.num_blocks(endpoint.id),
        "in_flight": endpoint.num_in_flight,
        "load": load,
        "promised_tokens": promised_tokens,
        "free_blocks": report and report.free_blocks,
        "adapters": report and report.adapters,
        "report_age_s": report and round(now_s - endpoint.report_s, 3),
        "ms_per_token": endpoint.learnt_ms_per_token,
        "warming_up_s": round(warming_s, 1) if (warming_s := now_s - endpoint.warmup.since_s) < slow_start_s else None,
    }
