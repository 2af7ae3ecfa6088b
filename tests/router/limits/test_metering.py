"""What a request does to its tenant's meters is the same in C++ and in Python."""

import random
import sys

import pytest

from quire_router.limits.accounts import ONLY_HELD
from quire_router.limits.meter import Meter
from quire_router.limits.metering import WHOLE_WINDOW, metering
from quire_router.limits.meters import TenantMeters, _reserve
from quire_router.native.library import native
from quire_router.tenant_errors import show_limit

if native() is None:
    pytest.skip("no C++ compiler: there is nothing to compare", allow_module_level=True)

NUMBERS = (0, 1, 2, 5, 100, 10**9, 2**51, 2**53, 2**62, 2**80)
NAMES = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


class Store:
    """Is never asked."""


def meter_of(numbers):
    meter = Meter("tokens", "k", *numbers["windows"])
    meter.plan(numbers["limit"], 10)
    for name in ("held", "reserved", "total", "spare", "free"):
        setattr(meter, name, numbers[name])
    meter.refused_until_s = 7.0
    return meter


def drawn(rng):
    few = NUMBERS[: rng.choice((5, 6, len(NUMBERS)))]
    return {
        "windows": rng.choice(((60, 120), (ONLY_HELD, 60))),
        "limit": rng.choice((None, *few)),
        "free": rng.choice((None, *few, -3)),
        **{name: rng.choice(few) for name in ("held", "reserved", "total", "spare")},
    }


def state(meter):
    return {name: getattr(meter, name, "unset") for name in Meter.__slots__}


def settled(meters, demands, spent):
    """As TenantMeters settles by its loop; whether it gives something back."""
    room = TenantMeters("t", Store(), lambda: 0.0, lambda: 0.0)
    told = []
    room._give_back_soon = told.append
    room.settle(demands, (spent,) * len(meters))
    return bool(told)


def pair(rng):
    """The same meters twice, and the same demands of each."""
    numbers = [drawn(rng) for _ in range(rng.randint(0, 3))]
    asked = [rng.choice((0, 1, 3, 99, rng.choice(NUMBERS))) for _ in numbers]
    both = [[meter_of(one) for one in numbers] for _ in range(2)]
    kind = rng.choice((list, tuple))
    return [(meters, kind(zip(meters, asked, strict=True))) for meters in both]


def test_reserving_and_settling_are_the_same_in_both():
    rng, quick, num_left = random.Random(5), metering(), 0
    for _ in range(20_000):
        (ours, our_demands), (theirs, their_demands) = pair(rng)
        before = [state(meter) for meter in ours]

        found = quick.reserve(our_demands)
        if found is None:
            num_left += 1
            assert [state(meter) for meter in ours] == before
        else:
            assert found == _reserve(their_demands)
            assert [state(meter) for meter in ours] == [state(meter) for meter in theirs]

        (ours, our_demands), (theirs, their_demands) = pair(rng)
        before, spent = [state(meter) for meter in ours], rng.choice((0, 1, 3, 99, rng.choice(NUMBERS)))
        is_idle = quick.settle(our_demands, spent)
        if is_idle is None:
            assert [state(meter) for meter in ours] == before
        else:
            assert is_idle == settled(theirs, their_demands, spent)
            assert [state(meter) for meter in ours] == [state(meter) for meter in theirs]
    assert 1_000 < num_left < 15_000


def test_a_limit_is_shown_the_same_by_both():
    rng = random.Random(6)
    for _ in range(5_000):
        meter = meter_of(drawn(rng) | {"limit": rng.choice(NUMBERS)})
        ours, theirs = {}, {NAMES[0]: meter.limit_text, NAMES[1]: str(meter.remaining), NAMES[2]: WHOLE_WINDOW}

        show_limit(ours, meter, "requests")

        assert ours == theirs
        assert metering().show({}, meter, NAMES) in (True, None)


def test_a_usual_request_is_not_left_to_the_twin():
    meter = meter_of(
        {"windows": (60, 120), "limit": 10**9, "free": None, "held": 10**6, "reserved": 5, "total": 3, "spare": 10**6}
    )
    headers = {}

    found = (
        metering().reserve(((meter, 7),)),
        metering().settle(((meter, 7),), 4),
        metering().show(headers, meter, NAMES),
    )

    assert found == (1, False, True)
    assert (meter.reserved, meter.held, meter.total) == (5, 10**6 - 4, 7)


@pytest.mark.parametrize("odd", [None, 3, "x", [], (1,), [(1, 2)], [("x", 1)], [object()], {}, [(None, None)]])
def test_what_is_no_demand_is_left_to_the_twin(odd):
    quick = metering()

    assert quick.settle(odd, 1) in (None, False)
    assert quick.reserve(odd) in (None, 1)


def test_a_meter_that_is_only_counted_or_named_twice_is_left_to_the_twin():
    meter = meter_of({"windows": (60, 120), "limit": 9, "free": 9, "held": 9, "reserved": 0, "total": 0, "spare": 0})
    before = state(meter)

    found = (
        metering().settle([(meter, None)], 1),
        metering().settle([(meter, 1), (meter, 1)], 1),
        metering().settle([(meter, 1)], "1"),
        metering().reserve([(meter, 1), (meter, 1)]),
        metering().show({}, object(), NAMES),
        metering().show({}, meter, ("one",)),
    )

    assert found == (None,) * 6
    assert state(meter) == before


def test_nothing_is_kept_or_lost_of_what_is_counted():
    meter = meter_of(
        {"windows": (60, 120), "limit": 10**9, "free": None, "held": 10**9, "reserved": 0, "total": 0, "spare": 0}
    )
    demands = ((meter, 1000),)

    def turn():
        metering().reserve(demands)
        metering().show({}, meter, NAMES)
        metering().settle(demands, 500)

    turn()
    changes = []
    for _ in range(3):  # what else lives in this process holds None as well, and may end in one of them
        before = [sys.getrefcount(one) for one in (meter, demands, None, True, WHOLE_WINDOW, meter.limit_text)]
        for _ in range(1000):
            turn()
        after = [sys.getrefcount(one) for one in (meter, demands, None, True, WHOLE_WINDOW, meter.limit_text)]
        changes.append([abs(now - was) for now, was in zip(after, before, strict=True)])

    assert [min(of_one) < 100 for of_one in zip(*changes, strict=True)] == [True] * 6, changes
