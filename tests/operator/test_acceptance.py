"""Whether routes count, and what their status says."""

from datetime import UTC, datetime

from quire_contract.router_config import ComplexityStep, ShadowEntry
from quire_operator.acceptance import accepted_status, decide_route

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWNERS = {"llama": ("team", "llama"), "secret": ("other", "secret")}


def route(**spec: object) -> dict:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": "r", "namespace": "team", "uid": "u", "generation": 3},
        "spec": {"model": "public", "targets": [{"model": "llama", "weight": 2}], **spec},
    }


def test_a_route_over_models_of_its_namespace_is_told_to_routers() -> None:
    entry, problems, reason = decide_route(route(fallbacks=["llama"], timeoutSeconds=9), OWNERS, {})

    assert (problems, reason) == ((), "Accepted")
    assert (entry.model, entry.targets[0].weight, entry.fallbacks, entry.timeout_s) == ("public", 2, ["llama"], 9.0)


def test_models_of_other_namespaces_are_as_unknown_as_any() -> None:
    targets = [{"model": "llama"}, {"model": "secret"}]
    entry, problems, reason = decide_route(route(targets=targets, fallbacks=["nobody"]), OWNERS, {})

    assert entry is None
    assert reason == "UnknownModel"
    assert [problem.path for problem in problems] == ["spec.targets[1].model", "spec.fallbacks[0]"]


def test_a_name_that_is_taken_is_refused() -> None:
    for document, older in ((route(model="secret"), {}), (route(), {"public": ("team", "first")})):
        entry, problems, reason = decide_route(document, OWNERS, older)
        assert (entry, reason, problems[0].path) == (None, "NameConflict", "spec.model")


def test_a_route_that_makes_no_sense_names_its_field() -> None:
    _, problems, reason = decide_route(route(targets=[{"model": "llama", "weight": -1}]), OWNERS, {})

    assert reason == "InvalidSpec"
    assert problems[0].path == "spec.targets[0].weight"


def test_a_condition_keeps_its_time_while_it_does_not_turn() -> None:
    document = route()
    document["status"] = accepted_status(document, (), "Accepted", NOW)
    later = datetime(2026, 2, 2, tzinfo=UTC)

    assert accepted_status(document, (), "Accepted", later) == document["status"]
    turned = accepted_status(document, ["x: wrong"], "UnknownModel", later)
    assert turned["conditions"][0]["lastTransitionTime"] == "2026-02-02T00:00:00Z"
    assert turned["observedGeneration"] == 3


def test_stickiness_shadows_and_fallbacks_on_errors_are_told_to_routers() -> None:
    shadow = {"model": "llama", "percent": 5}
    entry, problems, _ = decide_route(route(sticky="User", shadow=shadow, fallbackOnError=True), OWNERS, {})

    assert problems == ()
    assert (entry.sticky, entry.shadow, entry.fallback_on_error) == (
        "user",
        ShadowEntry(model="llama", percent=5),
        True,
    )


def test_a_route_by_complexity_needs_its_models_too() -> None:
    document = route(complexity=[{"model": "llama", "below": "30"}, {"model": "nobody"}], shadow={"model": "secret"})
    del document["spec"]["targets"]

    entry, problems, reason = decide_route(document, OWNERS, {})
    known, no_problems, _ = decide_route(
        document, {**OWNERS, "nobody": ("team", "nobody"), "secret": ("team", "secret")}, {}
    )

    assert (entry, reason) == (None, "UnknownModel")
    assert [problem.path for problem in problems] == ["spec.complexity[1].model", "spec.shadow.model"]
    assert no_problems == ()
    assert known.complexity == [ComplexityStep(model="llama", below=30.0), ComplexityStep(model="nobody")]
    assert known.targets == []
