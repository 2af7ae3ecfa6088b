"""Who answers for a route: sticky by hash, by complexity, or as a header says."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from quire_contract.openai.errors import ApiError
from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import ComplexityStep, ModelEntry, RouteEntry, RouterConfig, RouteTargetEntry
from quire_router.endpoint_pool import EndpointPool
from quire_router.revision_stats import RevisionStats
from quire_router.route_plan import MAX_PLANS, Asker, RoutePlanner, is_structured, sticky_key
from quire_router.splitting import order_by_hash

MODELS = ("small", "large", "spare", "other")


def route(weights=None, **fields):
    targets = [RouteTargetEntry(model=model, weight=weight) for model, weight in (weights or {}).items()]
    return RouteEntry(model="chat", targets=targets, **fields)


def planner_of(entry):
    pool = EndpointPool(RevisionStats(boot="b"))
    pool.apply(RouterConfig(models=[ModelEntry(name=m) for m in MODELS], endpoints=[], routes=[entry]))
    return RoutePlanner(pool, random.Random(1))


def asker(body=None, tenant=None, request_id="r", **headers):
    data = json.dumps(body or {}).encode()
    found = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return Asker(request_id=request_id, headers=found, body=data, fields=None, tenant_id=tenant)


BY_COMPLEXITY = route(
    complexity=[ComplexityStep(model="small", below=10.0), ComplexityStep(model="large")], fallbacks=["spare"]
)


def test_a_name_that_is_a_models_own_has_no_plan_to_explain():
    planner = planner_of(route({"small": 1}))

    plan = planner.plan("other", asker())

    assert (plan.targets, plan.entry, plan.shown()) == (("other",), None, {"chosen_by": "name", "targets": ["other"]})
    assert len(planner.plans) == 0


def test_an_alias_is_a_route_with_one_target():
    assert planner_of(route({"large": 1})).plan("chat", asker()).targets == ("large",)


@pytest.mark.parametrize(
    ("sticky", "asked", "same"),
    [
        ("tenant", [asker(tenant="a"), asker(tenant="a", Authorization="Bearer other")], True),
        ("tenant", [asker(tenant="a"), asker(tenant="b")], False),
        ("tenant", [asker(Authorization="Bearer k"), asker(x_api_key="k")], True),
        ("user", [asker({"user": "u"}, tenant="a"), asker({"metadata": {"user_id": "u"}}, tenant="a")], True),
        ("user", [asker({"user": "u"}, tenant="a"), asker({"safety_identifier": "u"}, tenant="a")], True),
        ("user", [asker({"user": "u"}, tenant="a"), asker({"user": "u"}, tenant="b")], False),
        ("user", [asker({"user": "u"}), asker({"user": "v"})], False),
    ],
)
def test_what_stays_together_has_one_key(sticky, asked, same):
    keys = [sticky_key(sticky, one) for one in asked]

    assert None not in keys
    assert (keys[0] == keys[1]) == same


@pytest.mark.parametrize(
    ("sticky", "asked"),
    [
        ("none", asker({"user": "u"}, tenant="a")),
        ("tenant", asker()),
        ("user", asker(tenant="a")),
        ("user", asker({"user": 3, "metadata": ["x"]}, tenant="a")),
    ],
)
def test_who_is_not_known_is_drawn_by_weight(sticky, asked):
    entry = route({"small": 1, "large": 1}, sticky=sticky)
    planner = planner_of(entry)

    plans = [planner.plan("chat", asked) for _ in range(50)]

    assert sticky_key(entry.sticky, asked) is None
    assert {plan.targets for plan in plans} == {("small", "large"), ("large", "small")}
    assert {plan.chosen_by for plan in plans} == {"weight"}


def test_a_tenant_stays_at_its_target():
    planner = planner_of(route({"small": 1, "large": 1}, sticky="tenant", fallbacks=["spare"]))

    plans = [planner.plan("chat", asker(tenant="team")) for _ in range(20)]

    assert len({plan.targets for plan in plans}) == 1
    assert plans[0].targets[-1] == "spare"
    assert plans[0].chosen_by == "sticky"


def test_keys_are_shared_out_by_weight():
    entry = route({"small": 90, "large": 10, "off": 0})

    first = Counter(order_by_hash(entry, b"user %d" % i)[0] for i in range(10_000))

    assert 8_850 < first["small"] < 9_150
    assert first["small"] + first["large"] == 10_000


@settings(max_examples=20, deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 20), min_size=2),
    more=st.integers(1, 20),
    data=st.data(),
)
def test_a_weight_that_grows_only_brings_keys_to_its_own_target(weights, more, data):
    grown = data.draw(st.sampled_from(sorted(weights)))
    changed = {**weights, grown: weights[grown] + more}

    for number in range(200):
        before = order_by_hash(route(weights), b"%d" % number)[0]
        after = order_by_hash(route(changed), b"%d" % number)[0]
        assert after in (before, grown)


@pytest.mark.parametrize(
    ("text", "expected"), [("hi", "small"), ("prove it step by step, in detail; compare", "large")]
)
def test_complexity_chooses_the_first_step_that_the_score_is_below(text, expected):
    asked = Asker(
        request_id="r",
        headers=CIMultiDict(),
        body=b"{}",
        fields=RoutingFields(model="chat", prompt=text),
        tenant_id=None,
    )

    plan = planner_of(BY_COMPLEXITY).plan("chat", asked)

    assert plan.targets == (expected, "spare")
    assert plan.chosen_by == "complexity"
    assert plan.shown()["complexity"]["steps"] == [{"model": "small", "below": 10.0}, {"model": "large", "below": None}]


@pytest.mark.parametrize("entry", [BY_COMPLEXITY, route({"small": 1, "large": 0}, fallbacks=["spare"])])
@pytest.mark.parametrize("wanted", ["small", "large", "spare"])
def test_a_header_overrides_with_any_of_the_routes_models(entry, wanted):
    plan = planner_of(entry).plan("chat", asker(x_quire_model=wanted))

    assert plan.targets == tuple(dict.fromkeys([wanted, "spare"]))
    assert (plan.chosen_by, plan.complexity) == ("header", None)


@pytest.mark.parametrize(("model", "said"), [("chat", "use one of small, large, spare"), ("small", "no route")])
def test_a_header_with_any_other_model_is_refused(model, said):
    with pytest.raises(ApiError, match=said) as caught:
        planner_of(BY_COMPLEXITY).plan(model, asker(x_quire_model="other"))

    assert (caught.value.status, caught.value.param) == (400, "x-quire-model")


def test_only_so_many_plans_are_remembered():
    planner = planner_of(route({"small": 1}))

    for number in range(MAX_PLANS + 10):
        planner.plan("chat", asker(request_id=f"r{number}"))

    assert len(planner.plans) == MAX_PLANS
    assert "r0" not in planner.plans


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": {"type": "json_schema"}}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"structured_outputs": {"regex": "a"}}, True),
        ({"text": {"format": {"type": "json_object"}}}, True),
        ({"output_config": {"format": {"type": "json_schema"}}}, True),
        ({"response_format": "x", "text": 3}, False),
    ],
)
def test_a_form_of_the_answer_is_found_in_every_apis_words(body, expected):
    assert is_structured(json.dumps(body).encode()) is expected
    assert is_structured(b"[") is False
