"""Reservations counted in C++ against those in Python: two endpoints that live through the same, one with each."""

import gc
import random
import sys

import pytest

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry
from quire_router.counting import reservation_class
from quire_router.endpoints import Endpoint, Reservation
from quire_router.native.library import native
from quire_router.revision_stats import RevisionCounts

COUNTED = (
    "num_in_flight", "num_unanswered", "pending_tokens", "_unreported_tokens", "_recent_ms", "_recent_s", "learnt_ms_per_token",
    "_ms_per_token",
)  # fmt: skip
STATE = ("uncached", "started_s", "waiting", "closed", "is_taken", "is_trial", "idle_start")
ARGUMENTS = (0.05, 30.0, 0.1, 2.0, 64)


def endpoint_with(told):
    endpoint = Endpoint(EndpointEntry(id="w", url="http://w:1", models=["m"]), RevisionCounts())
    endpoint.on_change = told.append
    return endpoint


class World:
    """An endpoint whose reservations come and go by chance."""

    def __init__(self, made_by, seed):
        self.made_by, self.rng, self.now_s = made_by, random.Random(seed), 1000.0
        self.told, self.all, self.seen = [], [], []
        self.endpoint = endpoint_with(self.told)

    def step(self):
        rng, endpoint = self.rng, self.endpoint
        self.now_s += rng.choice([0.0, 0.01, 0.1, 40.0 if rng.random() < 0.02 else 1.0])
        if rng.random() < 0.3:
            started_s = self.now_s if rng.random() < 0.95 else int(self.now_s)
            self.all.append(self.made_by(endpoint, rng.choice([0, 1, 63, 64, 9000, 2**60, True]), started_s))
            self.all[-1].is_trial = rng.random() < 0.1
        elif rng.random() < 0.2:
            report = LoadReport(
                pod="p", model="m", epoch="e", ts=0.0, kv_seq=0, running=rng.choice([0, 1]), waiting=0, free_blocks=9,
                total_blocks=9, uncached_tokens=0, prefill_tokens_per_s=rng.choice([0.0, 0.0, 900.0]),
            )  # fmt: skip
            rng.choice([lambda: endpoint.take_report(report, self.now_s), endpoint.forget_report])()
        elif self.all:
            one = rng.choice(self.all[-6:])
            how = [
                one.take, one.take, one.give_back, lambda: one.first_byte(self.now_s, is_stream=rng.random() < 0.6), one.__enter__,
                lambda: one.__exit__(None, None, None),
            ]  # fmt: skip
            rng.choice(how)()
        self.seen.append(self.state())

    def state(self):
        endpoint = self.endpoint
        numbers = {one: number for number, one in enumerate(self.all)}
        of_all = [[getattr(one, name) for name in STATE] for one in self.all[-7:]]
        unreported = [numbers[one] for one in endpoint._unreported]
        trial = None if endpoint.trial is None else numbers[endpoint.trial]
        return [getattr(endpoint, name) for name in COUNTED], of_all, unreported, trial, len(self.told)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_becomes_of_requests_both_count_the_same(seed):
    in_python, in_cpp = World(Reservation, seed), World(reservation_class(), seed)

    for _ in range(1500):
        in_python.step()
        in_cpp.step()

    assert in_cpp.seen == in_python.seen
    assert len(in_cpp.all) > 100
    assert type(in_cpp.all[0]) is not Reservation


class Noted(Endpoint):
    """Notes what its own methods are asked for."""

    __slots__ = ("asked",)

    def admit(self, reservation):
        self.asked.append("admit")

    def prefilled(self, reservation):
        self.asked.append("prefilled")

    def release(self, reservation):
        self.asked.append("release")


def asked_of(changes):
    """What C++ left to an endpoint's own methods, with some of its fields changed, or its reservation's."""
    endpoint = Noted(EndpointEntry(id="w", url="http://w:1", models=["m"]), RevisionCounts())
    endpoint.asked = []
    reservation = reservation_class()(endpoint, 5, 1000.0)
    for name, value in changes.items():
        setattr(endpoint if hasattr(endpoint, name) else reservation, name, value)
    reservation.take()
    reservation.first_byte(1001.0, is_stream=False)
    reservation.give_back()
    return endpoint.asked


@pytest.mark.parametrize(
    "changes",
    [
        {"num_in_flight": 0.5}, {"num_unanswered": None}, {"pending_tokens": 2**70}, {"_unreported": []}, {"_unreported_tokens": "x"},
        {"report_s": 3}, {"learnt_ms_per_token": 1}, {"_recent_ms": None}, {"_recent_s": 1}, {"uncached": 2**60}, {"started_s": 1000},
        {"is_trial": True},
    ],
)  # fmt: skip
def test_what_is_not_as_reckoned_with_is_left_to_the_endpoint(changes):
    assert asked_of({}) == []
    assert asked_of(changes)[0] == "admit"


def test_what_is_no_reservation_is_refused():
    methods = native().Counting(Reservation, Endpoint, *ARGUMENTS).methods()

    for name in ("take", "give_back"):
        with pytest.raises(TypeError, match="not a reservation"):
            type("Other", (), {name: methods[name]})().__getattribute__(name)()
    other = type("Other", (), methods)()
    with pytest.raises(TypeError, match="not a reservation"):
        other.first_byte(1.0, is_stream=True)
    with pytest.raises(TypeError, match="is_stream"):
        other.first_byte(1.0, True)
    with pytest.raises((TypeError, AttributeError)):
        native().Counting(int, Endpoint, *ARGUMENTS)
    with pytest.raises((TypeError, AttributeError)):
        native().Counting(Reservation, Reservation, *ARGUMENTS)


def test_a_reservation_that_was_never_made_is_an_error():
    made = reservation_class()
    empty = made.__new__(made)

    for use in (empty.take, empty.give_back, lambda: empty.first_byte(1.0, is_stream=True)):
        with pytest.raises(AttributeError):
            use()
    empty.is_taken = False
    with pytest.raises(AttributeError):
        empty.take()


def test_who_hears_of_it_may_fail():
    def fails(_):
        raise RuntimeError("deaf")

    endpoint = endpoint_with([])
    reservation = reservation_class()(endpoint, 5, 1000.0)
    reservation.take()
    endpoint.on_change = fails

    with pytest.raises(RuntimeError, match="deaf"):
        reservation.give_back()

    assert (endpoint.num_in_flight, reservation.closed) == (0, True)


def test_no_references_are_left_behind():
    endpoint, numbers = endpoint_with([]), (1000.0, 10**9)
    endpoint.on_change = id
    watched = (endpoint, endpoint._unreported, *numbers)

    def once():
        reservation = reservation_class()(endpoint, numbers[1], numbers[0])
        reservation.take()
        reservation.first_byte(1001.0, is_stream=False)
        reservation.give_back()

    once()
    before = [sys.getrefcount(one) for one in watched]
    for _ in range(1000):
        once()
    gc.collect()

    assert [now - then < 5 for now, then in zip(map(sys.getrefcount, watched), before, strict=True)] == [True] * 4
