"""The order of waiting requests: bands, fairness by weight, and that nothing is ever lost."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_router.fair_queue import LOWER_EVERY, FairQueue, Ticket


class Tickets:
    """Makes tickets that are numbered as they come."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, flow: str = "a", priority: int = 0, **values: float) -> Ticket[str]:
        self.number += 1
        numbers = {name: int(value) if name != "cost" else value for name, value in values.items()}
        return Ticket(flow, number=self.number, flow=flow, priority=priority, **numbers)  # type: ignore[arg-type]


def anybody(ticket: Ticket[str]) -> bool:
    return True


def drained(queue: FairQueue[str], number: int | None = None) -> list[Ticket[str]]:
    """The next starts, in their order."""
    found = []
    while number is None or len(found) < number:
        ticket = queue.pop(anybody)
        if ticket is None:
            break
        found.append(ticket)
    return found


def filled(tickets: list[Ticket[str]]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for ticket in tickets:
        queue.join(ticket)
    return queue


def test_a_tenants_first_request_waits_for_one_of_a_tenant_with_a_thousand() -> None:
    make = Tickets()
    queue = filled([make("a") for _ in range(1000)])
    drained(queue, 10)

    queue.join(make("b"))
    order = [ticket.owner for ticket in drained(queue, 2)]

    assert "b" in order


@pytest.mark.parametrize(("cost_a", "cost_b", "expected"), [(1, 1, 3.0), (100, 100, 3.0), (300, 100, 9.0)])
def test_starts_are_shared_by_weight_and_cost(cost_a: int, cost_b: int, expected: float) -> None:
    make = Tickets()
    queue = filled(
        [make("a", weight=1, cost=cost_a) for _ in range(300)] + [make("b", weight=3, cost=cost_b) for _ in range(300)]
    )

    counts = Counter(ticket.owner for ticket in drained(queue, 200))

    assert counts["b"] / counts["a"] == pytest.approx(expected, rel=0.1)


def test_a_tenants_own_requests_start_as_they_came() -> None:
    make = Tickets()
    queue = filled([make("a", cost=cost) for cost in (9, 1, 5)])

    assert [ticket.number for ticket in drained(queue)] == [1, 2, 3]


def test_who_comes_back_at_once_has_not_become_younger() -> None:
    make = Tickets()
    queue = filled([make("a", cost=100), *(make("b", cost=100) for _ in range(6))])
    starts = []

    for _ in range(6):
        (ticket,) = drained(queue, 1)
        starts.append(ticket.owner)
        if ticket.owner == "a":
            queue.join(make("a", cost=100))

    assert Counter(starts) == {"a": 3, "b": 3}


def test_a_higher_band_goes_first_and_a_lower_one_has_every_twentieth_start() -> None:
    make = Tickets()
    low, high = [make("low", -1) for _ in range(10)], [make("high", 5) for _ in range(100)]
    queue = filled(low + high)

    order = [ticket.owner for ticket in drained(queue, 60)]

    assert order[: LOWER_EVERY - 1] == ["high"] * (LOWER_EVERY - 1)
    assert [i + 1 for i, owner in enumerate(order) if owner == "low"] == [20, 40, 60]


def test_a_flow_whose_first_request_cannot_start_lets_the_others_pass_and_earns_nothing() -> None:
    make = Tickets()
    queue = filled([make("a") for _ in range(30)] + [make("b") for _ in range(30)])

    passing = [queue.pop(lambda ticket: ticket.flow == "b") for _ in range(20)]
    after = Counter(ticket.owner for ticket in drained(queue, 10))

    assert {ticket.owner for ticket in passing if ticket is not None} == {"b"}
    assert after in ({"a": 5, "b": 5}, {"a": 6, "b": 4})


@pytest.mark.parametrize(
    ("waiting", "newcomer", "victim"),
    [
        ([("a", 0)] * 3, ("a", 0), None),
        ([("a", 0)] * 3, ("b", 0), 3),
        ([("a", 0), ("b", 0)], ("c", 0), None),
        ([("a", 0), ("b", 0), ("b", 0)], ("c", 0), 3),
        ([("a", 0), ("b", 0)], ("c", 1), 1),
        ([("a", 1), ("b", 0)], ("c", 1), 2),
        ([("a", 0), ("b", -1)], ("c", 0), 2),
        ([("a", 0)], ("c", -1), None),
    ],
    ids=["own", "greedy", "equal", "greatest", "higher", "lowest band", "negative first", "lower"],
)
def test_in_a_full_queue_the_lowest_band_and_the_greatest_share_make_room(
    waiting: list[tuple[str, int]], newcomer: tuple[str, int], victim: int | None
) -> None:
    make = Tickets()
    queue = filled([make(flow, priority) for flow, priority in waiting])

    found = queue.victim_for(make(*newcomer), "tickets")

    assert (found and found.number) == victim


def test_a_tenant_of_a_greater_weight_may_hold_more_of_a_full_queue() -> None:
    make = Tickets()
    queue = filled([make("a", weight=3) for _ in range(3)])

    as_much = queue.victim_for(make("b", weight=1), "tickets")
    queue.join(make("a", weight=3))
    more = queue.victim_for(make("b", weight=1), "tickets")

    assert as_much is None
    assert more is not None


def test_bodies_count_where_memory_is_full() -> None:
    make = Tickets()
    queue = filled([make("a", size_bytes=1000), *(make("b", size_bytes=10) for _ in range(5))])

    found = queue.victim_for(make("c", size_bytes=500), "bytes")

    assert found is not None
    assert found.flow == "a"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "leave", "pop", "pop blocked"]),
        st.sampled_from("abc"),
        st.sampled_from([-5, 0, 0, 7]),
        st.integers(1, 4),
    ),
    max_size=120,
)


@given(STEPS)
def test_every_ticket_starts_or_leaves_once_and_each_flow_keeps_its_order(
    steps: list[tuple[str, str, int, int]],
) -> None:
    queue: FairQueue[str] = FairQueue()
    make = Tickets()
    inside: dict[int, Ticket[str]] = {}
    started: list[Ticket[str]] = []
    for action, flow, priority, weight in steps:
        if action == "join":
            ticket = make(flow, priority, weight=weight, cost=weight * 2.0)
            inside[ticket.number] = ticket
            queue.join(ticket)
        elif action == "leave" and inside:
            queue.leave(inside.pop(sorted(inside)[(weight * 7) % len(inside)]))
        elif action.startswith("pop"):
            found = queue.pop(anybody if action == "pop" else lambda ticket, flow=flow: ticket.flow != flow)  # type: ignore[misc]
            startable = [t for t in inside.values() if action == "pop" or t.flow != flow]
            assert (found is None) == (not startable)
            if found is not None:
                del inside[found.number]
                started.append(found)
        assert len(queue) == len(inside) == len({ticket.number for ticket in queue})

        for waiting_priority, band in queue._bands.items():
            most = max(flow.share("tickets") for flow in band.flows.values())
            assert band.greatest["tickets"].find().share("tickets") == most, waiting_priority

    rest = drained(queue)

    assert {ticket.number for ticket in rest} == set(inside)
    assert len(queue) == 0
    for key in {(ticket.flow, ticket.priority) for ticket in started + rest}:
        numbers = [t.number for t in started + rest if (t.flow, t.priority) == key]
        assert numbers == sorted(numbers)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), min_size=2, max_size=6),
    st.lists(st.integers(0, 5), max_size=30),
)
def test_backlogged_tenants_never_differ_by_more_than_one_request_each(
    tenants: list[tuple[int, int]], leaving: list[int]
) -> None:
    """The bound of start-time fair queueing: service for weight differs by at most cost / weight of both, whoever leaves meanwhile."""
    make = Tickets()
    tickets = [[make(str(i), weight=weight, cost=cost) for _ in range(60)] for i, (weight, cost) in enumerate(tenants)]
    queue = filled([ticket for own in tickets for ticket in own])
    for which in leaving:
        own = tickets[which % len(tickets)]
        if len(own) > 40:
            queue.leave(own.pop())
    service = [0.0] * len(tenants)

    for _ in range(30):
        (ticket,) = drained(queue, 1)
        service[int(ticket.owner)] += ticket.cost / ticket.weight
        for i, (weight_i, cost_i) in enumerate(tenants):
            for j, (weight_j, cost_j) in enumerate(tenants):
                assert service[i] - service[j] <= cost_i / weight_i + cost_j / weight_j + 1e-9


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=8, unique=True))
def test_no_band_starves(priorities: list[int]) -> None:
    make = Tickets()
    queue = filled([make("a", priority) for priority in priorities for _ in range(400)])
    bound = (len(priorities) - 1) * LOWER_EVERY

    starts = [ticket.priority for ticket in drained(queue, 2 * bound)]

    assert set(starts[:bound]) == set(starts[bound:]) == set(priorities)


def test_those_who_come_and_leave_while_nothing_starts_leave_no_trace() -> None:
    make = Tickets()
    queue = filled([make("stays")])

    for number in range(3000):
        ticket = make(f"tenant {number}")
        queue.join(ticket)
        queue.leave(ticket)
    (band,) = queue._bands.values()

    assert max(len(band._heap), *(len(greatest._heap) for greatest in band.greatest.values())) < 200
    assert len(band.flows) == 1
    assert len(band._ahead) == 0
