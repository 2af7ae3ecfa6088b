"""One simulation from its parts' descriptions to its figures, and several policies on the same load."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from quire_cli.simulate.costs import StepCost, WorkerShape
from quire_cli.simulate.fleet import ColdStart, W
from quire_cli.simulate.outcome import Objective, Point, Record, Summary, num_good, spread_of, spread_of_gaps
from quire_cli.simulate.parts import ExactParts, FastParts
from quire_cli.simulate.request import Request
from quire_cli.simulate.scaler import Scaling
from quire_cli.simulate.simulation import Parts, Setting, Simulation
from quire_contract.router_settings import AdmissionSettings

Fidelity = Literal["fast", "exact"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is simulated, beside the load and how it is scaled."""

    shape: WorkerShape
    cost: StepCost
    rules: AdmissionSettings
    cold_start: ColdStart
    replicas: int
    """At the beginning."""
    objective: Objective
    price_per_hour: float
    """Of one replica."""
    fidelity: Fidelity = "fast"
    caches: bool = True
    point_s: float = 60.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Figures and course."""

    summary: Summary
    points: Sequence[Point]
    reasons: dict[str, int]
    """Why replicas changed: reason -> times."""


def simulate(plan: Plan, scaling: Scaling, requests: Iterable[Request]) -> Outcome:
    """Run it."""
    setting = Setting(
        rules=plan.rules,
        scaling=scaling,
        cold_start=plan.cold_start,
        replicas=plan.replicas,
        request_s=plan.cost.request_s,
        max_num_seqs=plan.shape.max_num_seqs,
        point_s=plan.point_s,
        seed=plan.seed,
    )
    if plan.fidelity == "exact":
        return _run(plan, setting, ExactParts(plan.shape, plan.cost, plan.rules, plan.seed), requests)
    parts = FastParts(plan.shape, plan.cost, plan.rules, plan.seed, caches=plan.caches)
    return _run(plan, setting, parts, requests)


def shares_prompts(requests: Iterable[Request]) -> bool:
    """Whether any two prompts have something in common: without, no cache need be kept."""
    seen: set[str] = set()
    for request in requests:
        for name, _ in request.chain:
            if name in seen:
                return True
            seen.add(name)
    return False


def fixed(number: int) -> Scaling:
    """So many replicas, always."""
    return Scaling(name=f"{number} replicas", policy=None)


def _run(plan: Plan, setting: Setting, parts: Parts[W], requests: Iterable[Request]) -> Outcome:
    simulation = Simulation(setting, parts, requests)
    simulation.run()
    summary = _summary(plan, setting.scaling.name, simulation, simulation.record)
    return Outcome(summary=summary, points=simulation.record.points, reasons=simulation.scaler.reasons)


def _summary(plan: Plan, name: str, simulation: Simulation[W], record: Record) -> Summary:
    told, fleet = simulation.told, simulation.fleet
    duration_s = max(record.points[-1].at_s, 1e-9)
    good = num_good(record, plan.objective)
    hours = fleet.replica_s / 3600
    return Summary(
        policy=name,
        duration_s=duration_s,
        requests=len(record.ttft),
        dropped=record.num_dropped,
        held=record.num_held,
        held_most=record.held_most,
        ttft=spread_of([value for value in record.ttft if value >= 0]),
        itl=spread_of_gaps(told.gaps),
        request_itl=spread_of([value for value in record.itl if value >= 0]),
        prompt_tokens=record.num_prompt,
        output_tokens=record.num_output,
        cached_share=told.num_cached / told.num_prompt if told.num_prompt else 0.0,
        preemptions=told.num_preemptions,
        output_tokens_per_s=record.num_output / duration_s,
        requests_per_s=sum(record.done) / duration_s,
        goodput_per_s=good / duration_s,
        good_share=good / len(record.ttft) if record.ttft else 1.0,
        objective=plan.objective,
        replica_hours=hours,
        cost=hours * plan.price_per_hour,
        replicas_most=fleet.most,
        replicas_mean=fleet.replica_s / duration_s,
        starts=fleet.num_starts,
        changes=simulation.scaler.num_changes,
    )
