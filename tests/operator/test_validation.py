"""What InferenceService documents are refused, and with which words; what is accepted."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from quire_operator.api.inference_service import INFERENCE_SERVICE
from quire_operator.api.model_route import MODEL_ROUTE
from quire_operator.api.tenant import TENANT
from quire_operator.api.validation import InvalidResourceError, parse_resource, parse_service, unsupported_fields

Make = Callable[..., dict[str, Any]]

INVALID = [
    ("modle: {uri: 'file:x'}", "spec.modle: unknown field; did you mean 'model'?"),
    ("replica: 2", "spec.replica: unknown field; did you mean 'replicas'?"),
    ("maxNumSeqs: 4", "spec.maxNumSeqs: unknown field; did you mean 'spec.engine.maxNumSeqs'?"),
    ("engine: {max_num_seqs: 4}", "spec.engine.max_num_seqs: unknown field; did you mean 'maxNumSeqs'?"),
    ("engine: {args: [--foo]}", "spec.engine.args: unknown field; known here: blockSize, computeThreads"),
    ("model: {}", "spec.model.uri: is required"),
    ("model: null", "spec.model: is required"),
    ("model: quire-demo", "spec.model: must be an object, not 'quire-demo'"),
    ("model: {uri: llama}", "spec.model.uri: must be one of hf://org/name, pvc://claim/path"),
    ("model: {uri: 'hf:/x/y'}", "spec.model.uri: must look like hf://org/name"),
    ("model: {uri: 'hf://a/b/c'}", "spec.model.uri: must look like hf://org/name"),
    ("model: {uri: 'pvc://../x'}", "spec.model.uri: must not contain '..'"),
    ("model: {uri: 'file://host/x'}", "spec.model.uri: must look like file:///absolute/folder"),
    ("model: {uri: 'file://./'}", "spec.model.uri: names no folder"),
    ("model: {uri: 'https://me:pw@host/x'}", "credentials belong into spec.model.secretRef"),
    ("model: {uri: 'pvc://a/b', revision: main}", "spec.model.revision: only an hf:// source has revisions"),
    ("model: {uri: 'hf://a/b', dtype: bfloat}", "not 'bfloat'; did you mean bfloat16?"),
    ("model: {uri: 'hf://a/b', name: 'a@b'}", "spec.model.name: 'a@b' has characters or a form that is not allowed"),
    ("model: {uri: 'hf://a/b', name: x, aliases: [x]}", "spec.model.aliases: an alias repeats the model's name"),
    ("model: {uri: 'hf://a/b', aliases: [x, x]}", "spec.model.aliases: an alias is listed twice"),
    ("model: {uri: 'hf://a/b', maxModelLen: 1}", "spec.model.maxModelLen: must be at least 16, not 1"),
    (
        "scaling: {maxReplicas: 2, schedules: [{name: a, start: '8:00', end: '10:00', minReplicas: 1}]}",
        "schedules[0].start: '8:00' has characters or a form that is not allowed here; write a local time as hh:mm in quotes",
    ),
    ("replicas: '2'", "spec.replicas: must be a whole number, not '2'"),
    ("replicas: 2.5", "spec.replicas: must be a whole number, not 2.5"),
    ("replicas: -1", "spec.replicas: must be at least 0, not -1"),
    ("replicas: 5000", "spec.replicas: must be at most 1000, not 5000"),
    ("engine: {blockSize: 24}", "spec.engine.blockSize: must be a multiple of 16, not 24"),
    (
        "engine: {kvCacheMemory: lots}",
        "spec.engine.kvCacheMemory: must be a quantity such as 2, 500m or 16Gi, not 'lots'",
    ),
    ("engine: {depth: 3}", "spec.engine.depth: must be 1 or 2, not 3"),
    ("engine: {enablePrefixCaching: 'yes'}", "spec.engine.enablePrefixCaching: must be true or false, not 'yes'"),
    (
        "engine: {gpuMemoryUtilizationPercent: 90}",
        "spec.engine: engine.gpuMemoryUtilizationPercent needs spec.accelerator",
    ),
    ("engine: {generationDefaults: model}", "not 'model'; did you mean Model?"),
    ("engine: {image: 'Not An Image'}", "spec.engine.image: 'Not An Image' has characters"),
    ("accelerator: {type: nvidia}", "spec.accelerator.type: must be 'Nvidia', not 'nvidia'; did you mean Nvidia?"),
    ("accelerator: {type: Nvidia, count: 2}", "spec.accelerator: accelerator.count must equal parallelism.tensor"),
    ("resources: {limits: {nvidia.com/gpu: 1}}", "spec.resources.limits: knows cpu, memory, ephemeral-storage"),
    ("resources: {requests: {ram: 1Gi}}", "spec.resources.requests: knows cpu, memory, ephemeral-storage"),
    (
        "resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}",
        "spec.resources.requests: a request is larger than its limit",
    ),
    ("scaling: {minReplicas: 3, maxReplicas: 2}", "spec.scaling.minReplicas: is larger than maxReplicas"),
    ("scaling: {}", "spec.scaling.maxReplicas: is required"),
    (
        "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00', minReplicas: 1, timeZone: Europe/Berln}]}",
        "spec.scaling.schedules[0].timeZone: 'Europe/Berln' is no time zone that is known here; did you mean Europe/Berlin?",
    ),
    (
        "scaling: {maxReplicas: 2, schedules: [{name: a, start: '07:00', end: '09:00', minReplicas: 1, timeZone: Europe}]}",
        "spec.scaling.schedules[0].timeZone: 'Europe' is no time zone that is known here",
    ),
    ("rollout: {canary: {steps: [5, 100]}}", "spec.rollout.canary.steps: each step lies between 1 and 99"),
    ("adapters: {}", "spec.adapters: must be a list, not an object"),
    (
        "adapters: [{name: a, uri: 'hf://a/b'}, {name: a, uri: 'hf://a/b'}]",
        "spec.adapters: an adapter's name is used twice",
    ),
    ("placement: {tolerations: [{value: x}]}", "spec.placement.tolerations[0].key: operator Equal needs a key"),
    (
        "placement: {tolerations: [{operator: Exists, value: x}]}",
        "spec.placement.tolerations[0].value: operator Exists ignores",
    ),
    ("placement: {nodeSelector: {pool: 3}}", "spec.placement.nodeSelector.pool: must be text, not 3; put it in quotes"),
    (
        "podTemplate: {env: [{name: PORT, value: '1'}]}",
        "spec.podTemplate.env[0].name: is set by Quire and cannot be overridden",
    ),
    ("podTemplate: {env: [{name: A}, {name: A}]}", "spec.podTemplate.env: a variable is listed twice"),
    ("podTemplate: {labels: {quire.dev/role: x}}", "spec.podTemplate.labels: labels of quire.dev"),
    ("podTemplate: {securityContext: {}}", "spec.podTemplate.securityContext: unknown field; known here"),
]


@pytest.mark.parametrize(("spec", "message"), INVALID, ids=[spec for spec, _ in INVALID])
def test_an_invalid_spec_is_refused_naming_field_and_fix(document: Make, spec: str, message: str) -> None:
    broken = document(spec)

    with pytest.raises(InvalidResourceError) as caught:
        parse_service(broken)

    assert message in str(caught.value)


def test_every_problem_of_a_document_is_told_at_once(document: Make) -> None:
    broken = document("{replicas: -1, engine: {depth: 7, foo: 1}}")

    with pytest.raises(InvalidResourceError) as caught:
        parse_service(broken)

    assert {problem.path for problem in caught.value.problems} == {
        "spec.replicas",
        "spec.engine.depth",
        "spec.engine.foo",
    }


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("Llama", "metadata.name"), ("a" * 41, "at most 40"), ("9b", "metadata.name"), ("a_b", "metadata.name")],
)
def test_a_name_that_would_not_fit_derived_names_is_refused(document: Make, name: str, fragment: str) -> None:
    broken = document(name=name)

    with pytest.raises(InvalidResourceError) as caught:
        parse_service(broken)

    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("apiVersion", "quire.dev/v1", "apiVersion: must be quire.dev/v1alpha1, not 'quire.dev/v1'"),
        ("kind", "Deployment", "kind: must be InferenceService, not 'Deployment'"),
        ("kind", None, "kind: must be InferenceService, not nothing"),
    ],
)
def test_another_kind_is_refused(document: Make, key: str, value: str | None, message: str) -> None:
    broken = {**document(), key: value}

    with pytest.raises(InvalidResourceError) as caught:
        parse_service(broken)

    assert str(caught.value) == message


def test_a_document_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidResourceError, match="must be an object of kind InferenceService, not a list"):
        parse_service([1])


VALID = [
    "model: {uri: 'hf://meta-llama/Llama-3.1-8B', revision: 0e9e39f, name: llama-3.1-8b, aliases: [llama, meta-llama/Llama-3.1-8B]}",
    "model: {uri: 's3://models/llama/', secretRef: {name: aws}}",
    "model: {uri: 'https://host.example/llama.tar'}",
    "model: {uri: 'file:///srv/models/llama'}",
    "model: {uri: 'file:models/llama'}",
    "resources: {requests: {cpu: 2, memory: 4Gi}, limits: {cpu: '2', memory: 4Gi, vendor.example/rdma: 1}}",
    "engine: {kvCacheMemory: 1.5Gi, blockSize: 32, depth: 2, maxNumQueuedTokens: 100000}",
    "{accelerator: {type: Nvidia, count: 4}, parallelism: {tensor: 4}}",
    "{replicas: 2, scaling: {minReplicas: 0, maxReplicas: 4}}",
    "engine: null",
]


@pytest.mark.parametrize("spec", VALID)
def test_a_valid_spec_is_accepted(document: Make, spec: str) -> None:
    service = parse_service(document(spec))

    assert service.metadata.name == "llama"


def test_what_the_api_server_adds_to_a_resource_does_not_disturb(document: Make) -> None:
    stored = document("replicas: 3")
    stored["metadata"] |= {"uid": "u-1", "generation": 4, "resourceVersion": "9", "managedFields": [{}]}
    stored["status"] = {"fromAnotherVersion": True}

    service = parse_service(stored)

    assert (service.spec.replicas, service.metadata.generation, service.status) == (3, 4, None)


def test_served_names_begin_with_the_model_name_or_the_resource_name(document: Make) -> None:
    named = parse_service(document("model: {uri: 'file:x', name: a/b, aliases: [c]}"))
    unnamed = parse_service(document("model: {uri: 'file:x', aliases: [llama, c]}"))

    assert named.served_names == ("a/b", "c")
    assert unnamed.served_names == ("llama", "c")


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("{accelerator: {type: Nvidia, count: 2}, parallelism: {tensor: 2}}", "spec.parallelism.tensor"),
        ("adapters: [{name: a, uri: 'hf://a/b'}]", "spec.adapters"),
        ("disaggregation: {}", "spec.disaggregation"),
        ("model: {uri: 'hf://a/b', quantization: awq}", "spec.model.quantization"),
        ("engine: {speculation: NGram}", "spec.engine.speculation"),
    ],
)
def test_a_field_whose_engine_part_does_not_exist_is_named(document: Make, spec: str, path: str) -> None:
    service = parse_service(document(spec))

    problems = unsupported_fields(service)

    assert [problem.path for problem in problems] == [path]
    assert "not supported by this version: it needs " in problems[0].message


def test_defaults_ask_for_nothing_unsupported(document: Make) -> None:
    service = parse_service(document("{parallelism: {tensor: 1}, rollout: {strategy: Surge}, adapters: []}"))

    assert unsupported_fields(service) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": "m", "targets": []}, "spec.targets: must say who answers"),
        ({"model": "m", "targets": [{"model": "a", "weight": 0}]}, "spec.targets: all weights are 0"),
        ({"model": "m", "targets": [{"model": "a"}, {"model": "a"}]}, "spec.targets: a model is a target twice"),
        ({"model": "m", "targets": [{"model": "m"}]}, "spec.model: a route must not lead to itself"),
    ],
)
def test_an_invalid_route_is_refused(spec: dict[str, Any], message: str) -> None:
    route = {"apiVersion": "quire.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "r"}, "spec": spec}

    with pytest.raises(InvalidResourceError) as caught:
        parse_resource(route, MODEL_ROUTE)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"keys": [{"id": "a", "sha256": "sk-secret"}]}, "spec.keys[0].sha256"),
        (
            {"keys": [{"id": "a", "sha256": "0" * 64}, {"id": "a", "sha256": "1" * 64}]},
            "spec.keys: two keys have the same id",
        ),
        ({"keys": [{"id": "a", "sha256": "0" * 64, "expiresAt": "tomorrow"}]}, "spec.keys[0].expiresAt"),
        ({"limits": {"requestsPerMinut": 1}}, "did you mean 'requestsPerMinute'?"),
    ],
)
def test_an_invalid_tenant_is_refused(spec: dict[str, Any], message: str) -> None:
    tenant = {"apiVersion": "quire.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "t"}, "spec": spec}

    with pytest.raises(InvalidResourceError) as caught:
        parse_resource(tenant, TENANT)

    assert message in str(caught.value)


def test_a_resource_survives_a_round_trip(document: Make) -> None:
    service = parse_service(document("{replicas: 2, resources: {requests: {cpu: 2}}}"))

    again = parse_resource(service.model_dump(mode="json"), INFERENCE_SERVICE)

    assert again == service


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            "{billing: {mode: Prepaid, credit: free}}",
            "'free' has characters or a form that is not allowed here; write a decimal",
        ),
        (
            "{keys: [{id: a, sha256: sk-quire-oops}]}",
            "spec.keys[0].sha256: must be the SHA-256 of the key, 64 lower-case",
        ),
        (
            "{keys: [{id: a, sha256: '" + "a" * 64 + "', expiresAt: tomorrow}]}",
            "spec.keys[0].expiresAt: 'tomorrow' has characters or a form that is not allowed here; write a time such as 20",
        ),
    ],
)
def test_a_tenants_mistakes_are_told_by_example_and_a_key_in_the_digests_place_is_not_repeated(
    spec: str, told: str
) -> None:
    document = yaml.safe_load(f"apiVersion: quire.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: acme}}\nspec: {spec}\n")

    with pytest.raises(InvalidResourceError) as error:
        parse_resource(document, TENANT)

    assert told in str(error.value)
    assert "oops" not in str(error.value)
