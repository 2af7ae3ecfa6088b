"""Each cross-field rule is stated twice, in CEL for the API server and in Python here: both must refuse the same documents.

The CEL side is a stand-in for the API server.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from quire_operator.api.base import RULE_BROKEN, ApiModel
from quire_operator.api.inference_service import INFERENCE_SERVICE
from quire_operator.api.model_route import MODEL_ROUTE
from quire_operator.api.resource import Kind
from quire_operator.api.tenant import TENANT
from tests.operator.cel import broken_in_cel

Schema = dict[str, Any]

SERVICES = [
    "{}",
    "model: {uri: 'pvc://a/b', revision: main}",
    "model: {uri: 'hf://a/b', revision: main}",
    "model: {uri: 'hf://a/b', secretRef: {name: x}}",
    "model: {uri: 'https://a/b', secretRef: {name: x}}",
    "model: {uri: 'pvc://a/b', secretRef: {name: x}}",
    "model: {uri: 'file:b', secretRef: {name: x}}",
    "model: {uri: 'hf://a/b', name: x, aliases: [x]}",
    "model: {uri: 'hf://a/b', name: x, aliases: [y, z]}",
    "model: {uri: 'hf://a/b', aliases: [x, x]}",
    "accelerator: {type: Nvidia, count: 2}",
    "{accelerator: {type: Nvidia, count: 4}, parallelism: {tensor: 2, pipeline: 2}}",
    "engine: {gpuMemoryUtilizationPercent: 90}",
    "{accelerator: {type: Nvidia}, engine: {gpuMemoryUtilizationPercent: 90}}",
    "model: {uri: 'hf://a/b', quantization: int8}",
    "model: {uri: 'hf://a/b', quantization: fp8}",
    "model: {uri: 'hf://a/b', quantization: int8-weight-only}",
    "{accelerator: {type: Nvidia}, model: {uri: 'hf://a/b', quantization: int8}}",
    "{accelerator: {type: Nvidia}, model: {uri: 'hf://a/b', quantization: int8-weight-only}}",
    "{accelerator: {type: Nvidia}, model: {uri: 'hf://a/b', quantization: fp8}}",
    "engine: {kvCacheDtype: auto}",
    "engine: {kvCacheDtype: fp8}",
    "{accelerator: {type: Nvidia}, engine: {kvCacheDtype: fp8}}",
    "resources: {limits: {nvidia.com/gpu: 1}}",
    "resources: {requests: {ram: 1Gi}}",
    "resources: {requests: {cpu: 1, vendor.example/nic: 1}}",
    "resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}",
    "resources: {requests: {cpu: 2000m, memory: 1Gi}, limits: {cpu: 2}}",
    "resources: {requests: {memory: 1G}, limits: {memory: 1Gi}}",
    "resources: {requests: {memory: 1Gi}, limits: {memory: 1G}}",
    "scaling: {minReplicas: 3, maxReplicas: 2}",
    "scaling: {maxReplicas: 1}",
    "rollout: {canary: {steps: [5, 100]}}",
    "rollout: {canary: {}}",
    "adapters: [{name: a, uri: 'hf://a/b'}, {name: a, uri: 'hf://a/b'}]",
    "{model: {uri: 'hf://a/b', name: a}, adapters: [{name: a, uri: 'hf://a/b'}]}",
    "{model: {uri: 'hf://a/b', aliases: [a]}, adapters: [{name: a, uri: 'hf://a/b'}]}",
    "adapters: [{name: a, uri: 'hf://a/b'}, {name: b, uri: 'hf://a/b'}]",
    "adapters: [{name: a, uri: 'hf://a/b'}, {name: own, uri: 'hf://a/b'}]",
    "scaling: {maxReplicas: 2, targets: [{metric: KvUse, value: 101}]}",
    "scaling: {maxReplicas: 2, targets: [{metric: KvUse, value: 100}, {metric: KvUse, value: 9}]}",
    "scaling: {maxReplicas: 2, demandPerReplica: 4, targets: [{metric: Demand, value: 9}]}",
    "scaling: {maxReplicas: 2, demandPerReplica: 4, targets: [{metric: TimeToFirstToken, value: 900}]}",
    "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00'}]}",
    "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00', minReplicas: 2, maxReplicas: 1}]}",
    (
        "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00', minReplicas: 2}"
        ", {name: a, start: '07:00', end: '09:00', maxReplicas: 1}]}"
    ),
    "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00', minReplicas: 3}]}",
    "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00', minReplicas: 3, maxReplicas: 4}]}",
    "scaling: {maxReplicas: 2, fallback: {replicas: 3}}",
    "scaling: {maxReplicas: 2, fallback: {replicas: 2}}",
    "scaling: {maxReplicas: 2, standby: {}}",
    "scaling: {minReplicas: 0, maxReplicas: 2, standby: {}}",
    "{model: {uri: 'hf://a/b', name: b}, adapters: [{name: own, uri: 'hf://a/b'}]}",
    "disaggregation: {prefill: {resources: {requests: {cpu: 2}, limits: {cpu: 1}}}}",
    "placement: {tolerations: [{value: x}]}",
    "placement: {tolerations: [{operator: Exists}, {key: a, value: b}]}",
    "placement: {tolerations: [{operator: Exists, value: x}]}",
    "podTemplate: {env: [{name: PORT, value: '1'}]}",
    "podTemplate: {env: [{name: A}, {name: A}]}",
    "podTemplate: {labels: {quire.dev/role: x}}",
    "podTemplate: {labels: {app.kubernetes.io/name: x}}",
    "podTemplate: {annotations: {quire.dev/x: x}}",
    "podTemplate: {labels: {a: b}, annotations: {c: d}, env: [{name: A}, {name: B}]}",
]
ROUTES = [
    "{model: m, targets: [{model: a, weight: 0}]}",
    "{model: m, targets: [{model: a}, {model: a}]}",
    "{model: m, targets: [{model: m}]}",
    "{model: m, targets: [{model: a}], fallbacks: [m]}",
    "{model: m, targets: [{model: a}, {model: b, weight: 0}], fallbacks: [c]}",
    "{model: m}",
    "{model: m, targets: [], fallbacks: [c]}",
    "{model: m, targets: [{model: a}], complexity: [{model: b}]}",
    "{model: m, targets: [{model: a}], shadow: {model: m}}",
    "{model: m, targets: [{model: a}], shadow: {model: b, percent: 5}, sticky: Tenant, fallbackOnError: true}",
    "{model: m, complexity: [{model: m}]}",
    "{model: m, complexity: [{model: a}]}",
    "{model: m, complexity: [{model: a, below: '9'}, {model: b, below: '10.5'}, {model: c}]}",
    "{model: m, complexity: [{model: a, below: '10'}, {model: b, below: '9'}, {model: c}]}",
    "{model: m, complexity: [{model: a, below: '10'}, {model: b, below: '10.0'}, {model: c}]}",
    "{model: m, complexity: [{model: a, below: '10'}]}",
    "{model: m, complexity: [{model: a}, {model: b}]}",
    "{model: m, complexity: [{model: a}, {model: b, below: '10'}]}",
]
TENANTS = [
    "{}",
    f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: a, sha256: '{'1' * 64}'}}]",
    f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: b, sha256: '{'1' * 64}'}}]",
    f"keys: [{{id: a, sha256: '{'0' * 64}'}}, {{id: b, sha256: '{'0' * 64}'}}]",
    "billing: {mode: Prepaid}",
    "billing: {mode: Prepaid, credit: '250.00'}",
    "billing: {credit: '1'}",
]
CASES = [
    *((INFERENCE_SERVICE, spec) for spec in SERVICES),
    *((MODEL_ROUTE, spec) for spec in ROUTES),
    *((TENANT, spec) for spec in TENANTS),
]


def broken_in_python(kind: Kind, document: Schema) -> list[str]:
    """Messages of the rules that the models report."""
    try:
        kind.model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        assert {detail["type"] for detail in error.errors()} == {RULE_BROKEN}
        return sorted(str(detail["ctx"]["rule"]) for detail in error.errors())
    return []


def document_of(kind: Kind, spec: str) -> Schema:
    """A whole document."""
    parsed = yaml.safe_load(spec)
    if kind is INFERENCE_SERVICE:
        parsed = {"model": {"uri": "pvc://models/llama"}, **parsed}
    return {"apiVersion": "quire.dev/v1alpha1", "kind": kind.kind, "metadata": {"name": "own"}, "spec": parsed}


@pytest.mark.parametrize(("kind", "spec"), CASES, ids=[f"{kind.kind} {spec}" for kind, spec in CASES])
def test_cel_and_python_agree(kind: Kind, spec: str) -> None:
    document = document_of(kind, spec)

    assert broken_in_cel(kind, document) == broken_in_python(kind, document)


def test_the_cases_break_every_rule_at_least_once() -> None:
    def rules_of(model: type[ApiModel]) -> Iterator[str]:
        yield from (rule.message for rule in model.rules)
        for child in model.__subclasses__():
            yield from rules_of(child)

    broken = {message for kind, spec in CASES for message in broken_in_cel(kind, document_of(kind, spec))}
    about_names = {rule.message for rule in INFERENCE_SERVICE.model.rules if rule.message.startswith("metadata.name")}

    assert set(rules_of(ApiModel)) - about_names == broken
