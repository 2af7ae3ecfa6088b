"""The ScaledObject and the HPA of a service: what of its policy they say, and what they cannot."""

from typing import Any

import pytest
import yaml

from quire_operator.api.validation import parse_service
from quire_operator.keda.metadata import parse_trigger
from quire_operator.manifests import pod_autoscaler
from quire_operator.manifests.scaled_object import WAKE_ONLY, keda_problems, scaled_object, told_target
from quire_operator.platform import KedaScaler, Platform
from quire_operator.scaling_objects import policy_for_others

SCALER = KedaScaler(address="quire-scaler.llm.svc:9090")
MINOR = 31
FULL = """
scaling:
  minReplicas: 0
  maxReplicas: 8
  demandPerReplica: 8
  activationDemand: 1
  pollingIntervalSeconds: 5
  cooldownSeconds: 300
  initialCooldownSeconds: 900
  behavior:
    scaleUp: {policies: [{type: Percent, value: 100, periodSeconds: 30}, {type: Pods, value: 2, periodSeconds: 30}]}
    scaleDown: {stabilizationWindowSeconds: 120, policies: [{type: Pods, value: 1}], selectPolicy: Min}
  fallback: {replicas: 1}
"""


def made(document, spec: str, *, platform: Any = None, minor: int = MINOR, is_forced: bool = False, capacity=None):
    service = parse_service({**document(spec), "metadata": {"name": "chat", "namespace": "models"}})
    policy = policy_for_others(service, capacity, ())
    settings = platform or Platform(keda=SCALER)
    interval = service.spec.scaling.polling_interval_seconds
    return scaled_object(service, policy, interval, settings, minor=minor, is_forced=is_forced)


def policy(document, spec: str):
    return policy_for_others(parse_service(document(spec)), None, ())


def triggers(found: dict) -> dict[str, dict]:
    return {trigger["name"]: trigger for trigger in found["spec"]["triggers"]}


def test_all_of_a_policy_is_said_in_kedas_words(document) -> None:
    found = made(document, FULL)

    assert found["apiVersion"] == "keda.sh/v1alpha1"
    assert found["metadata"]["name"] == "chat"
    assert "finalizers" not in found["metadata"]
    assert "scaledobject.keda.sh/name" not in found["metadata"]["labels"]
    assert found["spec"] == yaml.safe_load("""
        scaleTargetRef: {apiVersion: quire.dev/v1alpha1, kind: InferenceService, name: chat}
        pollingInterval: 5
        cooldownPeriod: 300
        initialCooldownPeriod: 900
        minReplicaCount: 0
        maxReplicaCount: 8
        fallback: {failureThreshold: 3, replicas: 1, behavior: currentReplicasIfHigher}
        advanced:
          restoreToOriginalReplicaCount: false
          horizontalPodAutoscalerConfig:
            behavior:
              scaleUp:
                stabilizationWindowSeconds: 0
                selectPolicy: Max
                policies:
                - {type: Percent, value: 100, periodSeconds: 30}
                - {type: Pods, value: 2, periodSeconds: 30}
              scaleDown:
                stabilizationWindowSeconds: 120
                selectPolicy: Min
                policies: [{type: Pods, value: 1, periodSeconds: 60}]
        triggers:
        - type: external-push
          name: demand
          metadata:
            scalerAddress: quire-scaler.llm.svc:9090
            namespace: models
            service: chat
            activation: "1"
            target: "8"
        """)


def test_defaults_are_said_too_for_they_are_others_elsewhere(document) -> None:
    found = made(document, "scaling: {maxReplicas: 4, demandPerReplica: 2}")["spec"]

    behavior = found["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"] == {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 4, "periodSeconds": 15},
        ],
    }
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert (found["minReplicaCount"], found["cooldownPeriod"]) == (1, 300)
    assert "fallback" not in found


def test_totals_and_values_are_triggers_of_their_own_which_our_scaler_reads(document) -> None:
    spec = """
    scaling:
      maxReplicas: 4
      targets:
      - {metric: QueueLength, value: 3}
      - {metric: TimeToFirstToken, value: 500}
      - {metric: KvUse, value: 80}
    """

    found = triggers(made(document, spec))

    assert list(found) == ["demand", "latency"]
    assert found["demand"]["type"] == "external-push"
    assert "metricType" not in found["demand"]
    assert (found["latency"]["type"], found["latency"]["metricType"]) == ("external", "Value")
    totals, values = (parse_trigger("models", found[name]["metadata"]) for name in ("demand", "latency"))
    assert totals.targets == {"QueueLength": 3.0}
    assert values.targets == {"TimeToFirstToken": 500.0, "KvUse": 80.0}


def test_without_a_total_the_push_trigger_only_wakes(document) -> None:
    spec = "scaling: {maxReplicas: 4, targets: [{metric: InterTokenLatency, value: 40}]}"

    found = triggers(made(document, spec))

    assert parse_trigger("models", found["demand"]["metadata"]).targets == {"Demand": WAKE_ONLY}
    assert parse_trigger("models", found["latency"]["metadata"]).targets == {"InterTokenLatency": 40.0}


def test_what_is_forced_is_told_to_the_scaler(document) -> None:
    found = triggers(made(document, FULL, is_forced=True))

    assert parse_trigger("models", found["demand"]["metadata"]).is_forced


def test_a_scaler_with_tls_is_dialled_with_tls_and_certificates(document) -> None:
    scaler = KedaScaler(address="quire-scaler.llm.svc:9090", tls=True, authentication="quire-scaler")

    found = triggers(made(document, FULL, platform=Platform(keda=scaler)))["demand"]

    assert found["metadata"]["enableTLS"] == "true"
    assert found["authenticationRef"] == {"name": "quire-scaler", "kind": "ClusterTriggerAuthentication"}


def test_a_prometheus_is_asked_for_the_same_demand_and_its_silence_is_an_error(document) -> None:
    scaler = KedaScaler(address="quire-scaler.llm.svc:9090", prometheus_address="http://prometheus.monitoring.svc:9090")

    found = triggers(made(document, FULL, platform=Platform(keda=scaler)))["demand-prometheus"]

    label = '{service="models/chat"}'
    assert found == {
        "type": "prometheus",
        "name": "demand-prometheus",
        "metadata": {
            "serverAddress": "http://prometheus.monitoring.svc:9090",
            "query": f"sum(quire_router_demand_own_requests{label}) + max(quire_router_demand_worker_requests{label})",
            "threshold": "8",
            "activationThreshold": "1",
            "ignoreNullValues": "false",
        },
    }


@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [
        ("weekdays: [Monday, Friday], start: '07:30', end: '18:00'", "30 7 * * 1,5", "0 18 * * 1,5"),
        ("weekdays: [Saturday, Sunday], start: '22:00', end: '06:15'", "0 22 * * 0,6", "15 6 * * 0,1"),
        ("start: '09:00', end: '17:00'", "0 9 * * *", "0 17 * * *"),
        ("start: '22:00', end: '06:00'", "0 22 * * *", "0 6 * * *"),
        ("start: '08:00', end: '08:00'", "0 8 * * *", "59 7 * * *"),
        ("start: '00:00', end: '00:00'", "0 0 * * *", "59 23 * * *"),
        ("weekdays: [Monday], start: '08:00', end: '08:00'", "0 8 * * 1", "0 8 * * 2"),
    ],
)
def test_a_schedule_is_a_cron_trigger(document, schedule, start, end) -> None:
    spec = (
        f"scaling: {{maxReplicas: 9, schedules: [{{name: day, timeZone: Europe/Berlin, minReplicas: 3, {schedule}}}]}}"
    )

    found = triggers(made(document, spec))["schedule-day"]

    assert found == {
        "type": "cron",
        "name": "schedule-day",
        "metadata": {"timezone": "Europe/Berlin", "start": start, "end": end, "desiredReplicas": "3"},
    }


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("panic: {}", "spec.scaling.panic"),
        (
            "schedules: [{name: a, start: '08:00', end: '09:00', maxReplicas: 2}]",
            "spec.scaling.schedules[0].maxReplicas",
        ),
        (
            "minReplicas: 2, schedules: [{name: a, start: '08:00', end: '09:00', minReplicas: 1}]",
            "spec.scaling.schedules[0].minReplicas",
        ),
        ("fallback: {replicas: 0}", "spec.scaling.fallback.replicas"),
        ("behavior: {scaleUp: {tolerancePercent: 20}}", "spec.scaling.behavior.scaleUp.tolerancePercent"),
    ],
)
def test_what_keda_cannot_do_is_named_with_the_field_and_the_fix(document, spec, path) -> None:
    problems = keda_problems(policy(document, f"scaling: {{maxReplicas: 4, {spec}}}"), MINOR)

    assert [problem.path for problem in problems] == [path]
    assert any(word in problems[0].message for word in ("BuiltIn", "write at least 1"))


def test_a_tolerance_is_said_where_the_server_honours_it(document) -> None:
    spec = "scaling: {maxReplicas: 4, demandPerReplica: 1, behavior: {scaleDown: {tolerancePercent: 25}}}"

    found = made(document, spec, minor=35)

    behavior = found["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["tolerance"] == "250m"
    assert "tolerance" not in behavior["scaleUp"]
    assert keda_problems(policy(document, spec), 35) == []


def test_an_engines_capacity_outlives_its_replicas_in_the_object(document) -> None:
    spec = "scaling: {maxReplicas: 4, minReplicas: 0}"

    assert told_target(made(document, spec, capacity=64)) == 41.0, "what it runs with comfort"
    assert told_target({"spec": {"triggers": [{"type": "cron", "metadata": {}}]}}) is None


def test_an_hpa_follows_the_external_metric_of_its_service(document) -> None:
    service = parse_service({**document(FULL), "metadata": {"name": "chat", "namespace": "models"}})
    found = pod_autoscaler.autoscaler(service, policy_for_others(service, None, ()), MINOR)

    assert found["apiVersion"] == "autoscaling/v2"
    assert found["spec"]["scaleTargetRef"]["kind"] == "InferenceService"
    assert (found["spec"]["minReplicas"], found["spec"]["maxReplicas"]) == (1, 8)
    assert found["spec"]["metrics"] == [
        {
            "type": "External",
            "external": {
                "metric": {
                    "name": "quire_operator_demand_requests",
                    "selector": {"matchLabels": {"service_namespace": "models", "service_name": "chat"}},
                },
                "target": {"type": "AverageValue", "averageValue": "8"},
            },
        }
    ]
    assert found["spec"]["behavior"]["scaleDown"]["selectPolicy"] == "Min"
    assert pod_autoscaler.told_target(found) == 8.0


@pytest.mark.parametrize(("minor", "least", "is_noted"), [(36, 1, True), (37, 0, False)])
def test_an_hpa_goes_to_zero_where_the_server_lets_it(document, minor, least, is_noted) -> None:
    service = parse_service({**document(FULL), "metadata": {"name": "chat", "namespace": "models"}})
    found = pod_autoscaler.autoscaler(service, policy_for_others(service, None, ()), minor)

    assert found["spec"]["minReplicas"] == least
    assert ("HPAScaleToZero" in pod_autoscaler.zero_note(policy_for_others(service, None, ()), minor)) is is_noted


def test_what_an_hpa_cannot_do_is_named(document) -> None:
    spec = """
    scaling:
      maxReplicas: 4
      targets: [{metric: Demand, value: 2}, {metric: QueueWait, value: 100}]
      schedules: [{name: a, start: '08:00', end: '09:00', minReplicas: 2}]
      fallback: {replicas: 1}
    """

    problems = pod_autoscaler.autoscaler_problems(policy(document, spec), MINOR)

    assert [problem.path for problem in problems] == [
        "spec.scaling.targets",
        "spec.scaling.schedules",
        "spec.scaling.fallback",
    ]
    assert "QueueWait" in problems[0].message
