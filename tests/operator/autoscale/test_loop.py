"""Looks are taken on time and on edges, one at a time; changes are made once, tried again, and remembered."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from quire_operator.autoscale.aggregate import Reading, ScaleState
from quire_operator.autoscale.course import MAX_EVENTS, Memory, Scaling, View
from quire_operator.autoscale.history import Change, History
from quire_operator.autoscale.loop import Autoscaler, ScaleError
from quire_operator.autoscale.policy import Policy, Target
from quire_operator.autoscale.signal import Demand, Signal
from quire_operator.autoscale.verdict import Verdict

SERVICE = "team/demo"
POLL_S = 0.005
MAX_POLLS = 20000
NOW_S = 1_800_000_000.0
POLICY = Policy(min_replicas=0, max_replicas=8, targets=(Target(metric="Demand", value=1.0),), cooldown_s=10.0)


def one_each(signal: Signal, policy: Policy, history: History, now_s: float) -> Verdict:
    """A replica per request, nothing unknown goes down, nothing is limited."""
    demand = signal.readings.get("Demand")
    is_active = bool(demand)
    wanted = signal.replicas if demand is None else int(min(demand, policy.max_replicas))
    ups = (*history.ups, Change(at_s=now_s, amount=1)) if wanted > signal.replicas else history.ups
    history = replace(history, ups=ups, last_active_s=now_s if is_active else history.last_active_s)
    reason = "DemandUnknown" if demand is None else "Target"
    message = f"failures {signal.num_failures}" if demand is None else ""
    return Verdict(replicas=wanted, reason=reason, message=message, is_active=is_active, history=history)


def known(total: int, arrivals: int = 0) -> Reading:
    demand = Demand(held=total, queued=0, running=0, readings={"Demand": float(total)}, arrivals={("r", "b"): arrivals})
    return Reading(demand=demand, is_known=True, age_s=0.1)


def at_least(total: int) -> Reading:
    return replace(known(total), is_known=False, trouble="r is away")


NOTHING = Reading(demand=None, is_known=False, trouble="no router")


class Service:
    """Replicas that are what they are told to be, unless told to refuse."""

    polling_interval_s = 3600.0

    def __init__(self, replicas: int = 0, *, memory: Memory | None = None, is_writer: bool = True) -> None:
        self.replicas, self.refusals, self.is_writer = replicas, 0, is_writer
        self.is_there = True
        self.written: list[int] = []
        self.num_at_once = self.most_at_once = 0
        self._memory = memory or Memory()

    def state(self) -> ScaleState | None:
        return ScaleState(replicas=self.replicas, ready=self.replicas, created_s=NOW_S - 1e6) if self.is_there else None

    def policy(self, capacity: int | None) -> Policy:
        return POLICY

    def memory(self) -> Memory:
        return self._memory

    async def scale(self, view: View) -> None:
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        await asyncio.sleep(0)
        self.num_at_once -= 1
        if self.refusals:
            self.refusals -= 1
            raise ScaleError("the server is away")
        self.replicas = view.verdict.replicas
        self.written.append(self.replicas)


class World:
    """One service whose demand the test sets."""

    def __init__(self, service: Service, reading: Reading) -> None:
        self.service, self.reading, self.now_s = service, reading, NOW_S
        self.views: list[View] = []
        self.scaler = Autoscaler(
            read=lambda _: self.reading,
            wall_clock=lambda: self.now_s,
            on_view=lambda _, view: self.views.append(view),
            decide=one_each,
        )
        self.scaler.put(SERVICE, service)

    async def look(self, reading: Reading | None = None, after_s: float = 5.0) -> View:
        self.now_s += after_s
        self.reading = reading or self.reading
        view = await self.scaler.look(SERVICE)
        assert view is not None
        return view


@asynccontextmanager
async def running(world: World):
    task = asyncio.create_task(world.scaler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(check: Callable[[], object]) -> None:
    for _ in range(MAX_POLLS):
        if check():
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not so after {MAX_POLLS} polls")


async def test_edge_is_looked_at_at_once_and_looks_never_overlap() -> None:
    world = World(Service(), known(0))
    async with running(world):
        await until(lambda: world.views)
        world.reading = known(2)

        for _ in range(20):
            world.scaler.wake(SERVICE)
            await asyncio.sleep(0)
        await until(lambda: world.service.replicas == 2)

    assert world.service.written == [2]
    assert world.service.most_at_once == 1


async def test_change_that_was_refused_is_tried_again_and_counts_once() -> None:
    world = World(Service(), known(1))
    world.service.refusals = 1

    refused = await world.look()
    made = await world.look()

    assert (refused.scalings, refused.refusal) == ((), "the server is away")
    assert [one.replicas for one in made.scalings] == [1]
    assert made.verdict.history.ups == (Change(at_s=world.now_s, amount=1),)


async def test_refused_change_is_tried_again_before_the_polling_interval_is_over() -> None:
    world = World(Service(), known(1))
    world.service.refusals = 1

    async with running(world):
        await until(lambda: world.service.replicas == 1)

    assert world.service.written == [1]


async def test_newest_scalings_are_kept_with_their_reasons() -> None:
    world = World(Service(memory=Memory(scalings=(Scaling(at_s=NOW_S - 9, replicas=0, reason="earlier"),))), known(0))

    for replicas in range(1, 8):
        view = await world.look(known(replicas))

    assert [one.replicas for one in view.scalings] == [7, 6, 5, 4, 3]
    assert len(view.scalings) == MAX_EVENTS
    assert view.scalings[0].reason == "Target"


async def test_what_is_unknown_is_counted_and_never_read_as_zero() -> None:
    world = World(Service(3), known(3))
    await world.look()

    for _ in range(4):
        view = await world.look(NOTHING)

    assert (view.is_known, view.num_failures, view.verdict.reason) == (False, 4, "DemandUnknown")
    assert world.service.written == []
    assert (await world.look(known(3))).num_failures == 0


async def test_routers_that_begin_are_one_failure_however_long() -> None:
    world = World(Service(3), replace(NOTHING, is_settling=True))

    for _ in range(5):
        view = await world.look()

    assert view.num_failures == 1


async def test_lower_bound_adds_replicas_and_takes_none() -> None:
    world = World(Service(2), at_least(1))

    kept = await world.look()
    grown = await world.look(at_least(4))

    assert kept.verdict.reason == "DemandUnknown"
    assert kept.last_active_s == world.now_s - 5.0
    assert grown.verdict.replicas == 4
    assert world.service.written == [4]


async def test_service_that_is_only_watched_is_not_written() -> None:
    world = World(Service(is_writer=False), known(5))

    view = await world.look()

    assert (view.verdict.replicas, view.verdict.is_active) == (5, True)
    assert world.service.written == []


async def test_request_that_came_and_went_between_looks_keeps_the_service_awake() -> None:
    world = World(Service(1, memory=Memory(last_active_s=NOW_S)), known(0, arrivals=4))
    world.service.replicas = 1
    await world.look(at_least(0))
    await world.look(known(1, arrivals=5))

    view = await world.look(known(0, arrivals=6), after_s=100.0)

    assert view.last_active_s == world.now_s


async def test_new_process_goes_on_from_what_status_says() -> None:
    world = World(Service(2, memory=Memory(last_active_s=NOW_S - 1e5)), NOTHING)

    view = await world.look(after_s=0.0)

    assert view.last_active_s == NOW_S - 1e5
    assert view.verdict.history.recommendations[0].replicas == 2


async def test_service_that_is_gone_for_a_while_begins_anew() -> None:
    world = World(Service(2), NOTHING)
    await world.look()
    await world.look()
    world.service.is_there = False

    assert await world.scaler.look(SERVICE) is None

    world.service.is_there = True
    assert (await world.look()).num_failures == 1


async def test_another_target_under_the_same_name_is_another_service() -> None:
    world = World(Service(2), known(3))
    async with running(world):
        await until(lambda: world.service.written == [3])
        other = Service(0)

        world.scaler.put(SERVICE, other)
        await until(lambda: other.written == [3])
        world.scaler.drop(SERVICE)

    assert world.scaler.services() == ()
    assert world.service.written == [3]


async def test_service_that_cannot_be_looked_at_stops_no_other() -> None:
    class Broken(Service):
        polling_interval_s = 0.001

        def policy(self, capacity: int | None) -> Policy:
            raise ValueError("nobody foresaw this")

    world = World(Service(), known(2))
    world.scaler.put("team/broken", Broken())

    async with running(world):
        await until(lambda: world.service.written == [2])
        world.reading = known(3)
        world.scaler.wake(SERVICE)
        await until(lambda: world.service.written == [2, 3])

    assert world.scaler.view("team/broken") is None
