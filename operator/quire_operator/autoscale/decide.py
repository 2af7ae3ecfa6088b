"""`decide`: how many replicas there should be. Pure: the same arguments, the same answer.

    none        wake: demand above activation, a force, or a minimum; else nothing
    some        sleep: nobody wants it, it may sleep, and the cooldown is over
                bounds: a number outside them goes inside at once
                resize: recommend -> hold -> stabilize -> limit -> bound -> KV veto

Between none and one it is KEDA's executor, from one on HPA v2; what goes beyond them starts replicas sooner or stops them later.
"""

from dataclasses import dataclass, replace

from quire_operator.autoscale.activation import Activity, activity_of, idle_until, wake
from quire_operator.autoscale.fallback import fall_back
from quire_operator.autoscale.history import Change, History
from quire_operator.autoscale.kv_veto import keep_kv
from quire_operator.autoscale.limits import bound, limit, outside, recent
from quire_operator.autoscale.outlook import Outlook, comfortable, learn, look_ahead
from quire_operator.autoscale.panic import panic_until
from quire_operator.autoscale.policy import Policy, Target
from quire_operator.autoscale.recommend import Ask, Recommended, recommend
from quire_operator.autoscale.schedule import Bounds, bounds_at
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.stabilize import remembered, stabilize, with_window
from quire_operator.autoscale.step import Step, count
from quire_operator.autoscale.verdict import Verdict

_STILL = ("WithinTolerance", "OnTarget", "AtMinimum")
"""Reasons of a number that nothing moves."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """All that the rules look at. `history` has this reading in it."""

    signal: Signal
    policy: Policy
    history: History
    now_s: float
    bounds: Bounds
    activity: Activity

    @property
    def is_loading(self) -> bool:
        """Capacity is to come: a replica loads, and not for so long that it must be a fault."""
        since_s = self.history.loading_since_s
        return since_s is not None and self.now_s - since_s < self.policy.startup_s

    @property
    def is_panic(self) -> bool:
        return self.history.panic_until_s is not None


def decide(signal: Signal, policy: Policy, history: History, now_s: float) -> Verdict:
    """What /scale should say now. `now_s` is Unix time in seconds: schedules need the date.

    The verdict's history takes it that the change is made; where it could not be, go on with `history`.
    """
    bounds, activity = bounds_at(policy, now_s), activity_of(signal, policy)
    seen = _observe(signal, policy, history.until(now_s), activity, now_s)
    policy = with_window(policy, seen.start_s)
    scene = _Scene(signal=signal, policy=policy, history=seen, now_s=now_s, bounds=bounds, activity=activity)
    if signal.replicas == 0:
        return _verdict(scene, wake(signal, policy, bounds, activity))
    step = _sleep(scene) or outside(signal.replicas, bounds)
    return _verdict(scene, step) if step else _resized(scene)


def _observe(signal: Signal, policy: Policy, history: History, activity: Activity, now_s: float) -> History:
    """With what this reading tells, before anything is decided."""
    is_wanted = activity.is_active and (activity.demand is not None or signal.replicas == 0)
    window_s = policy.panic.window_s if policy.panic else 0.0
    demands = tuple(one for one in history.demands if one[0] > now_s - window_s)
    since_s = (now_s if history.loading_since_s is None else history.loading_since_s) if signal.loading else None
    is_loading = since_s is not None and now_s - since_s < policy.startup_s
    return replace(
        history,
        last_active_s=now_s if is_wanted else history.last_active_s,
        demands=demands if activity.demand is None or not window_s else (*demands, (now_s, activity.demand)),
        capacity=signal.capacity or history.capacity,
        loading_since_s=since_s,
        loaded_s=now_s if is_loading else history.loaded_s,
        start_s=signal.start_s or _started_in(signal, history, now_s) or history.start_s,
        learned=learn(history.learned, signal, now_s),
    )


def _started_in(signal: Signal, history: History, now_s: float) -> float | None:
    """How long the start took that is over with this reading, as far as readings tell; None: none is."""
    since_s = history.loading_since_s
    if since_s is None or signal.loading or signal.ready < signal.replicas:
        return None
    was_cancelled = any(change.at_s >= since_s for change in history.downs)
    return None if was_cancelled else now_s - since_s


def _sleep(scene: _Scene) -> Step | None:
    """The only way to zero: known demand that is not above activation, no minimum, and the whole cooldown behind."""
    policy, demand = scene.policy, scene.activity.demand
    if scene.bounds.fewest or not scene.activity.is_idle or scene.now_s <= idle_until(policy, scene.history):
        return None
    words = f"demand {demand:g} was not above {policy.activation:g} for the cooldown of {policy.cooldown_s:g} s"
    if scene.history.last_active_s is None:
        words = f"demand was never above {policy.activation:g}, and the initial cooldown is over"
    return Step(replicas=0, reason="ScaledToZero", said=(words,))


def _resized(scene: _Scene) -> Verdict:
    """From one on: HPA's road of a recommendation."""
    targets = _targets(scene)
    until_s = panic_until(scene.policy.panic, targets, scene.signal, scene.history, scene.now_s)
    scene = replace(scene, history=replace(scene.history, panic_until_s=until_s))
    fallen = fall_back(scene.policy, scene.signal)
    recommended = _recommended(scene, targets, fallen)
    current, history, policy, now_s = scene.signal.replicas, scene.history, scene.policy, scene.now_s
    step = _hold(scene, recommended)
    step = stabilize(step, current, history.recommendations, policy, now_s, is_panic=scene.is_panic)
    step = limit(step, current, history, policy, now_s, is_panic=scene.is_panic)
    step = keep_kv(bound(step, scene.bounds), scene.signal, policy)
    asked = None if recommended.ask is None or recommended.unknown else recommended.ask.replicas
    return _verdict(scene, _cooling(scene, step), asked=asked, is_fallback=fallen is not None)


def _targets(scene: _Scene) -> tuple[Target, ...]:
    """The policy's, or demand at the engine's own capacity; none while no engine has told it.

    A policy that looks ahead gives a replica no more requests than it runs with comfort.
    """
    policy, history = scene.policy, scene.history
    targets = policy.targets
    if not targets and history.capacity is not None:
        targets = (Target(metric="Demand", value=history.capacity),)
    if not policy.looks_ahead:
        return targets
    return tuple(
        replace(one, value=comfortable(one.value, history.learned, scene.signal.kv_tokens_per_replica))
        if one.metric == "Demand"
        else one
        for one in targets
    )


def _recommended(scene: _Scene, targets: tuple[Target, ...], fallen: Ask | None) -> Recommended:
    """What the targets ask for, with the fallback in place of what is unknown."""
    outlook = _outlook(scene, targets)
    known = recommend(scene.signal, scene.policy, targets, is_loading=scene.is_loading, outlook=outlook)
    if fallen is not None:
        asks = [ask for ask in (known.ask, fallen) if ask is not None]
        return Recommended(ask=max(asks, key=lambda ask: ask.replicas), unknown=())
    if scene.signal.num_failures:
        return replace(known, unknown=tuple(dict.fromkeys(("demand", *known.unknown))))
    return known if targets else replace(known, unknown=("what one replica runs at once",))


def _outlook(scene: _Scene, targets: tuple[Target, ...]) -> Outlook | None:
    each = next((target.value for target in targets if target.metric == "Demand"), None)
    if not scene.policy.looks_ahead or each is None:
        return None
    return look_ahead(scene.history.learned, scene.signal, each, scene.history.start_s)


def _hold(scene: _Scene, recommended: Recommended) -> Step:
    """The recommendation, or the present number where it would be wrong to go down."""
    current, ask = scene.signal.replicas, recommended.ask
    unknown = f"{' and '.join(recommended.unknown)} unknown"
    if ask is None:
        return Step(replicas=current, reason="DemandUnknown", said=(f"{unknown}; stays at {count(current)}",))
    step = Step(replicas=ask.replicas, reason=_direction(ask, current), said=(ask.words,))
    if step.replicas >= current:
        return step
    if recommended.unknown:
        return step.then(current, "DemandUnknown", f"{unknown}; not down from {count(current)}")
    if scene.is_loading:
        return step.then(current, "Loading", f"not down while {scene.signal.loading} of {count(current)} load")
    if scene.is_panic:
        until_s = scene.history.panic_until_s or scene.now_s
        return step.then(current, "Panic", f"a burst; not down for {until_s - scene.now_s:.0f} s")
    return step


def _direction(ask: Ask, current: int) -> str:
    if ask.is_frozen:
        return "Loading"
    if ask.is_within:
        return "WithinTolerance"
    if ask.replicas == current:
        return "OnTarget"
    return "AboveTarget" if ask.replicas > current else "BelowTarget"


def _cooling(scene: _Scene, step: Step) -> Step:
    """Says when a service that nobody wants may sleep."""
    if scene.bounds.fewest or not scene.activity.is_idle or step.reason not in _STILL:
        return step
    left_s = idle_until(scene.policy, scene.history) - scene.now_s
    return step.then(step.replicas, "CoolingDown", f"idle, may sleep in {max(0.0, left_s):.0f} s")


def _verdict(scene: _Scene, step: Step, *, asked: int | None = None, is_fallback: bool = False) -> Verdict:
    """With what the next decision must know of this one."""
    history, policy, now_s, current = scene.history, scene.policy, scene.now_s, scene.signal.replicas
    added = step.replicas - current if current and step.replicas else 0
    ups = (Change(at_s=now_s, amount=added),) if added > 0 else ()
    downs = (Change(at_s=now_s, amount=-added),) if added < 0 else ()
    after = replace(
        history,
        recommendations=remembered(history.recommendations, asked, policy, now_s),
        ups=(*recent(history.ups, policy, now_s), *ups),
        downs=(*recent(history.downs, policy, now_s), *downs),
        loading_since_s=now_s if step.replicas > current else history.loading_since_s,
    )
    is_plain = step.reason in ("AboveTarget", "BelowTarget", "OnTarget", "WithinTolerance")
    return Verdict(
        replicas=step.replicas,
        reason="Fallback" if is_fallback and is_plain else step.reason,
        message="; ".join(step.said),
        is_active=scene.activity.is_active,
        is_fallback=is_fallback,
        is_limited=step.is_limited,
        history=after,
    )
