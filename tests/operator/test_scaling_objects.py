"""Who writes the replicas: which provider, with which object, and what is said of it."""

from datetime import UTC, datetime, timedelta

import pytest

from quire_operator.api.validation import parse_service
from quire_operator.autoscale.provider import Autoscalers
from quire_operator.platform import KedaScaler, Platform
from quire_operator.scaling_objects import choose_provider, provider_manifests, reported
from quire_operator.timestamps import format_time

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
NOTHING = Autoscalers(minor=20)
BOTH = Autoscalers(has_keda=True, has_hpa=True, minor=31)
PLATFORM = Platform(keda=KedaScaler(address="quire-scaler.llm.svc:9090"))
SCALED = {"kind": "ScaledObject", "metadata": {"name": "chat", "namespace": "models"}}
HPA = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "chat", "namespace": "models"}}


@pytest.fixture
def service(document):
    def make(scaling: str = "maxReplicas: 4"):
        metadata = {"name": "chat", "namespace": "models", "uid": "abc"}
        return parse_service({**document(f"scaling: {{{scaling}}}"), "metadata": metadata})

    return make


def manifests(service, autoscalers, children=(), capacity=None, annotations=None):
    provider = choose_provider(service, autoscalers, children, NOW)
    document = {"metadata": {"annotations": annotations or {}}}
    return provider_manifests(
        service, provider, autoscalers, PLATFORM, document=document, children=children, capacity=capacity
    )


@pytest.mark.parametrize(
    ("scaling", "autoscalers", "name", "kinds"),
    [
        ("maxReplicas: 4", NOTHING, "BuiltIn", []),
        ("maxReplicas: 4", BOTH, "Keda", ["ScaledObject"]),
        ("maxReplicas: 4, provider: BuiltIn", BOTH, "BuiltIn", []),
        ("maxReplicas: 4, provider: Keda", BOTH, "Keda", ["ScaledObject"]),
        ("maxReplicas: 4, provider: Hpa", BOTH, "Hpa", ["HorizontalPodAutoscaler"]),
        ("maxReplicas: 4, provider: Keda", NOTHING, "Keda", []),
        ("maxReplicas: 4, provider: Hpa", NOTHING, "Hpa", []),
        ("maxReplicas: 4, panic: {}", BOTH, "BuiltIn", []),
        ("maxReplicas: 4, panic: {}, provider: Keda", BOTH, "Keda", []),
        ("maxReplicas: 4, panic: {mode: Disabled}", BOTH, "Keda", ["ScaledObject"]),
    ],
)
def test_exactly_one_writes_and_only_its_object_exists(service, scaling, autoscalers, name, kinds) -> None:
    subject = service(scaling)

    assert choose_provider(subject, autoscalers, (), NOW).name == name
    assert [manifest["kind"] for manifest in manifests(subject, autoscalers)] == kinds


@pytest.mark.parametrize(
    ("scaling", "autoscalers", "reason", "told"),
    [
        ("maxReplicas: 4, provider: Keda", NOTHING, "KEDANotInstalled", "install KEDA, or set provider: Auto"),
        ("maxReplicas: 4, provider: Hpa", NOTHING, "HPANotServed", "use Kubernetes 1.23 or later"),
        ("maxReplicas: 4, panic: {}, provider: Keda", BOTH, "NotSupported", "spec.scaling.panic: "),
    ],
)
def test_a_provider_that_cannot_work_here_says_what_to_do(service, scaling, autoscalers, reason, told) -> None:
    problem = choose_provider(service(scaling), autoscalers, (), NOW).problem

    assert problem[0] == reason
    assert told in problem[1]


def test_auto_says_why_it_leaves_a_keda_that_is_there(service) -> None:
    assert "spec.scaling.panic" in choose_provider(service("maxReplicas: 4, panic: {}"), BOTH, (), NOW).note


def test_a_service_that_does_not_scale_has_no_provider(document) -> None:
    subject = parse_service(document(""))

    assert choose_provider(subject, BOTH, (), NOW) is None
    assert provider_manifests(subject, None, BOTH, PLATFORM, document={}, children=(), capacity=None) == []


@pytest.mark.parametrize(
    ("scaling", "autoscalers", "child", "writer"),
    [
        ("maxReplicas: 4, provider: BuiltIn", BOTH, SCALED, "Keda"),
        ("maxReplicas: 4, provider: Hpa", BOTH, SCALED, "Keda"),
        ("maxReplicas: 4", BOTH, HPA, "Hpa"),
    ],
)
def test_the_object_of_another_goes_first_and_its_owner_stays_the_writer_until_then(
    service, scaling, autoscalers, child, writer
) -> None:
    subject = service(scaling)

    provider = choose_provider(subject, autoscalers, [child], NOW)

    assert (provider.name, provider.problem[0]) == (writer, "SwitchingProvider")
    assert manifests(subject, autoscalers, [child]) == []


def test_a_scaled_object_that_no_keda_ends_holds_up_nobody(service) -> None:
    ended = {
        **SCALED,
        "metadata": {**SCALED["metadata"], "deletionTimestamp": format_time(NOW - timedelta(seconds=30))},
    }
    subject = service("maxReplicas: 4, provider: BuiltIn")

    assert choose_provider(subject, BOTH, [ended], NOW).name == "Keda"
    assert choose_provider(subject, BOTH, [ended], NOW + timedelta(seconds=31)).name == "BuiltIn"


def test_an_object_whose_kind_has_gone_holds_up_nobody(service) -> None:
    gone = Autoscalers(has_hpa=True, minor=31)

    assert choose_provider(service(), gone, [SCALED], NOW).name == "BuiltIn"
    assert choose_provider(service("maxReplicas: 4, provider: BuiltIn"), BOTH, [SCALED], NOW).name == "Keda"


def test_capacity_is_the_target_and_is_kept_at_zero_replicas(service) -> None:
    subject = service("maxReplicas: 4, minReplicas: 0")

    (first,) = manifests(subject, BOTH)
    (awake,) = manifests(subject, BOTH, [SCALED], capacity=64)
    (asleep,) = manifests(subject, BOTH, [awake])

    assert [found["spec"]["triggers"][0]["metadata"]["target"] for found in (first, awake, asleep)] == [
        "1000000",
        "41",
        "41",
    ], "what an engine that runs 64 at once does with comfort"
    assert awake["metadata"]["ownerReferences"][0]["controller"] is True


def test_the_annotation_that_forces_a_service_reaches_keda(service) -> None:
    (found,) = manifests(service(), BOTH, annotations={"quire.dev/force-activation": "true"})

    assert found["spec"]["triggers"][0]["metadata"]["forceActivation"] == "true"


def scaled(**conditions: tuple[str, str, str]) -> dict:
    entries = [
        {"type": kind, "status": status, "reason": reason, "message": message}
        for kind, (status, reason, message) in conditions.items()
    ]
    return {**SCALED, "status": {"conditions": entries}}


READY = ("True", "ScaledObjectReady", "ScaledObject is defined correctly and is ready for scaling")
ACTIVE = ("False", "ScalerNotActive", "Scaling is not performed because triggers are not active")


@pytest.mark.parametrize(
    ("children", "said"),
    [
        ([], ("Unknown", "Creating")),
        ([SCALED], ("Unknown", "WaitingForKEDA")),
        ([scaled(Ready=("Unknown", "", ""))], ("Unknown", "WaitingForKEDA")),
        ([scaled(Ready=READY, Active=ACTIVE)], ("True", "ScaledObjectReady")),
        (
            [scaled(Ready=("False", "TriggerError", "Triggers defined in ScaledObject are not working correctly"))],
            ("False", "TriggerError"),
        ),
        ([scaled(Ready=("Unknown", "PartialTriggerError", "Some triggers fail"))], ("Unknown", "PartialTriggerError")),
        ([scaled(Ready=READY, Fallback=("True", "FallbackExists", "falling back"))], ("False", "Fallback")),
        ([scaled(Ready=READY, Paused=("True", "ScaledObjectPaused", "ScaledObject is paused"))], ("False", "Paused")),
    ],
)
def test_kedas_conditions_are_told_in_one_with_kedas_own_words(service, children, said) -> None:
    subject = service()
    provider = choose_provider(subject, BOTH, (), NOW)

    status, reason, message = reported(subject, provider, BOTH, children)

    assert (status, reason) == said
    for child in children:
        for entry in child.get("status", {}).get("conditions", ()):
            assert entry["message"] in message


def test_a_keda_that_has_dropped_a_field_is_told_of(service) -> None:
    subject = service("maxReplicas: 4, fallback: {replicas: 1}")
    dropped = {**scaled(Ready=READY), "spec": {"fallback": {"failureThreshold": 3, "replicas": 1}}}

    status, reason, message = reported(subject, choose_provider(subject, BOTH, (), NOW), BOTH, [dropped])

    assert (status, reason) == ("False", "KEDATooOld")
    assert "KEDA 2.17" in message


@pytest.mark.parametrize(
    ("conditions", "minor", "said"),
    [
        ([], 31, ("Unknown", "WaitingForHPA")),
        (
            [("AbleToScale", "True", "ReadyForNewScale"), ("ScalingActive", "True", "ValidMetricFound")],
            31,
            ("True", "Ready"),
        ),
        (
            [("AbleToScale", "True", "SucceededGetScale"), ("ScalingActive", "False", "FailedGetExternalMetric")],
            31,
            ("False", "FailedGetExternalMetric"),
        ),
        (
            [("AbleToScale", "True", "SucceededGetScale"), ("ScalingActive", "False", "ScalingDisabled")],
            31,
            ("True", "Ready"),
        ),
    ],
)
def test_an_hpas_conditions_are_told_in_one(service, conditions, minor, said) -> None:
    subject = service("maxReplicas: 4, provider: Hpa")
    provider = choose_provider(subject, BOTH, (), NOW)
    entries = [
        {"type": kind, "status": status, "reason": reason, "message": "m"} for kind, status, reason in conditions
    ]

    found = reported(subject, provider, BOTH, [{**HPA, "status": {"conditions": entries}}])

    assert found[:2] == said


def test_an_hpa_that_cannot_go_to_zero_says_so(service) -> None:
    subject = service("maxReplicas: 4, minReplicas: 0, provider: Hpa")
    entries = [{"type": kind, "status": "True", "reason": "x"} for kind in ("AbleToScale", "ScalingActive")]

    status, reason, message = reported(
        subject, choose_provider(subject, BOTH, (), NOW), BOTH, [{**HPA, "status": {"conditions": entries}}]
    )

    assert (status, reason) == ("False", "NoScaleToZero")
    assert "HPAScaleToZero" in message
