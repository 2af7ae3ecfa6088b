"""What a trigger's metadata may say, and what it is told otherwise."""

import pytest

from quire_operator.keda.metadata import MetadataError, Trigger, parse_trigger

KEDAS_OWN = {"scalerAddress": "quire-scaler.llm.svc:9090", "enableTLS": "true", "unsafeSsl": "false"}


def test_a_trigger_of_totals_is_read() -> None:
    trigger = parse_trigger(
        "models", {**KEDAS_OWN, "service": "chat", "target": "8", "queueLengthTarget": "2.5", "activation": "3"}
    )

    assert trigger == Trigger(
        service="models/chat", targets={"Demand": 8.0, "QueueLength": 2.5}, activation=3.0, is_forced=False
    )
    assert trigger.metrics == {"demand": "Demand", "queue_length": "QueueLength"}


def test_a_trigger_of_values_is_read() -> None:
    told = {"service": "chat", "namespace": "models", "timeToFirstTokenTargetMs": "500", "kvUseTargetPercent": "80"}

    trigger = parse_trigger("models", {**told, "forceActivation": "True"})

    assert trigger.targets == {"TimeToFirstToken": 500.0, "KvUse": 80.0}
    assert trigger.is_forced


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"target": "8"}, "service: is missing; write the InferenceService's name"),
        ({"service": "a/b", "target": "8"}, "service: is a name without a namespace, and 'a/b' is none"),
        (
            {"service": "chat", "namespace": "finance", "target": "8"},
            "namespace: must be the ScaledObject's own, 'models'; nobody reads another's",
        ),
        ({"service": "c" * 254, "target": "8"}, "service: no name is longer than 253"),
        ({"service": "chat"}, "target: is missing; write it, or another target (target, queueLengthTarget, "),
        ({"service": "chat", "target": "0"}, "target: must be a number from 0.001 to 1e+09 and is '0'"),
        ({"service": "chat", "target": "nan"}, "target: must be a number"),
        ({"service": "chat", "target": "many"}, "target: must be a number"),
        ({"service": "chat", "target": "8", "activation": "-1"}, "activation: must be a number from 0 to"),
        ({"service": "chat", "target": "8", "forceActivation": "yes"}, "forceActivation: must be true or false"),
        ({"service": "chat", "targt": "8"}, "targt: unknown key; known are activation, forceActivation, "),
        (
            {"service": "chat", "target": "8", "kvUseTargetPercent": "80"},
            "kvUseTargetPercent: belongs into a trigger of its own with metricType Value",
        ),
    ],
)
def test_bad_metadata_names_its_key_and_the_fix(metadata, told) -> None:
    with pytest.raises(MetadataError) as refused:
        parse_trigger("models", metadata)

    assert str(refused.value).startswith(told)
