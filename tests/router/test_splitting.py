"""Shares of the requests: drawn by weight, nothing without a weight, and bodies that keep all but their model."""

import random
from collections import Counter

import pytest

from quire_contract.openai.errors import ApiError
from quire_contract.router_config import RouteEntry, RouteTargetEntry
from quire_router.splitting import choose_by_weight, order_targets, with_model


def test_shares_follow_the_weights():
    rng = random.Random(1)

    drawn = Counter(choose_by_weight({"stable": 90, "canary": 10}, {"stable", "canary"}, rng) for _ in range(10_000))

    assert 8_850 < drawn["stable"] < 9_150
    assert drawn.total() == 10_000


def test_who_cannot_answer_leaves_its_part_to_the_others():
    rng = random.Random(1)

    drawn = {choose_by_weight({"a": 98, "b": 1, "c": 1}, {"b", "c"}, rng) for _ in range(50)}

    assert drawn == {"b", "c"}


@pytest.mark.parametrize(
    ("weights", "usable"),
    [({"stable": 100, "canary": 0}, {"canary"}), ({"stable": 100}, {"other"}), ({"stable": 100}, set()), ({}, {"a"})],
    ids=["weight 0", "not named", "nobody ready", "no weights"],
)
def test_without_a_weight_nothing_is_got_even_if_nobody_else_is_ready(weights, usable):
    assert choose_by_weight(weights, usable, random.Random(1)) is None


def route(weights, fallbacks=()):
    targets = [RouteTargetEntry(model=model, weight=weight) for model, weight in weights.items()]
    return RouteEntry(model="chat", targets=targets, fallbacks=list(fallbacks))


def test_a_routes_targets_take_turns_by_weight_before_its_fallbacks_in_their_order():
    rng = random.Random(1)

    orders = Counter(order_targets(route({"a": 3, "b": 1, "off": 0}, ["z", "y"]), rng) for _ in range(4000))

    assert set(orders) == {("a", "b", "z", "y"), ("b", "a", "z", "y")}
    assert 2850 < orders[("a", "b", "z", "y")] < 3150


def test_a_target_that_is_also_a_fallback_is_tried_once():
    assert order_targets(route({"a": 1}, ["a", "b"]), random.Random(1)) == ("a", "b")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"chat","n":1}', b'{"model":"a \\"b","n":1}'),
        (
            b'{ "seed": 12345678901234567890, "model" : "chat", "x": {"model": "chat",  "y": 1.50}}',
            b'{"seed":12345678901234567890,"model":"a \\"b","x":{"model": "chat",  "y": 1.50}}',
        ),
        (
            b'{"prompt":"\\u0041\xc3\xa9 \\"model\\": 1"}',
            b'{"prompt":"\\u0041\xc3\xa9 \\"model\\": 1","model":"a \\"b"}',
        ),
        (b'{"model":"chat","mod\\u0065l":"chat"}', b'{"model":"a \\"b"}'),
    ],
    ids=["first", "exact values", "missing", "escaped key"],
)
def test_a_body_keeps_every_value_but_its_model(body, expected):
    assert with_model(body, 'a "b') == expected


@pytest.mark.parametrize(
    "body", [b"[1]", b"{", b'{"\xff": 1}', b"[" * 100_000], ids=["array", "broken", "utf-8", "deep"]
)
def test_a_body_that_is_no_json_object_is_the_clients_fault(body):
    with pytest.raises(ApiError) as caught:
        with_model(body, "a")

    assert caught.value.status == 400
