"""Everything that somebody may write wrongly is refused at apply, or shown in a condition, with the field's name and the fix.

Who refuses it, besides `quire` and the operator, which know all of it and see what old API servers let through:

    schema     the CRD's structural schema, on every API server
    rule       a CEL rule; API servers before 1.25 drop those
    unknown    kubectl, by the published schema: API servers drop unknown fields
    text       nobody else: it takes more than a pattern to see
    condition  nobody: the spec is right, and this version lacks the part
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
import yaml

from quire_operator.api.inference_service import INFERENCE_SERVICE
from quire_operator.api.validation import InvalidResourceError, NotYetSupportedError, parse_service
from quire_operator.decide import decide_service
from quire_operator.decision import ServiceSnapshot
from quire_operator.desired_state import refuse_unsupported
from quire_operator.platform import Platform
from tests.operator.cel import broken_in_cel

Make = Callable[..., dict[str, Any]]


class Case(NamedTuple):
    """One wrong spec."""

    spec: str
    refused_by: str
    path: str
    """The field that is named."""
    fix: str
    """What is said about it."""


LONG = "x" * 300
MANY = ", ".join(f"a{number}" for number in range(17))
CASES = [
    # Names of fields
    Case("modle: {uri: 'file:x'}", "unknown", "spec.modle", "did you mean 'model'?"),
    Case("replica: 2", "unknown", "spec.replica", "did you mean 'replicas'?"),
    Case("maxNumSeqs: 4", "unknown", "spec.maxNumSeqs", "did you mean 'spec.engine.maxNumSeqs'?"),
    Case("engine: {max_num_seqs: 4}", "unknown", "spec.engine.max_num_seqs", "did you mean 'maxNumSeqs'?"),
    Case("engine: {args: [--foo]}", "unknown", "spec.engine.args", "known here: blockSize, computeThreads"),
    Case("podTemplate: {securityContext: {}}", "unknown", "spec.podTemplate.securityContext", "known here: annotations"),
    Case("podTemplate: {volumes: []}", "unknown", "spec.podTemplate.volumes", "unknown field"),
    Case("podTemplate: {hostNetwork: true}", "unknown", "spec.podTemplate.hostNetwork", "unknown field"),
    # The model
    Case("model: {}", "schema", "spec.model.uri", "is required"),
    Case("model: quire-demo", "schema", "spec.model", "must be an object, not 'quire-demo'"),
    Case("model: {uri: llama}", "schema", "spec.model.uri", "must be one of hf://org/name, pvc://claim/path"),
    Case("model: {uri: 7}", "schema", "spec.model.uri", "must be text, not 7; put it in quotes"),
    Case("model: {uri: 'ftp://host/x'}", "schema", "spec.model.uri", "must be one of hf://org/name"),
    Case("model: {uri: 'hf:/x/y'}", "schema", "spec.model.uri", "must look like hf://org/name"),
    Case("model: {uri: 'hf://a b/c'}", "schema", "spec.model.uri", "must look like hf://org/name"),
    Case(f"model: {{uri: 'hf://a/{'b' * 1024}'}}", "schema", "spec.model.uri", "is too long: at most 1024"),
    Case("model: {uri: 'hf://a/b/c'}", "text", "spec.model.uri", "must look like hf://org/name"),
    Case("model: {uri: 'pvc://../x'}", "text", "spec.model.uri", "must not contain '..'"),
    Case("model: {uri: 's3://Bucket/x'}", "text", "spec.model.uri", "must look like s3://bucket/prefix"),
    Case("model: {uri: 'file://host/x'}", "text", "spec.model.uri", "must look like file:///absolute/folder"),
    Case("model: {uri: 'file://./'}", "text", "spec.model.uri", "names no folder"),
    Case("model: {uri: 'https://me:pw@host/x'}", "text", "spec.model.uri", "credentials belong into spec.model.secretRef"),
    Case("model: {uri: 'pvc://a/b', revision: main}", "rule", "spec.model.revision", "only an hf:// source has revisions; remove it"),
    Case("model: {uri: 'hf://a/b', revision: '-x'}", "schema", "spec.model.revision", "characters or a form that is not allowed"),
    Case("model: {uri: 'pvc://a/b', secretRef: {name: x}}", "rule", "spec.model.secretRef", "has credentials; remove it"),
    Case("model: {uri: 'hf://a/b', secretRef: {}}", "schema", "spec.model.secretRef.name", "is required"),
    Case("model: {uri: 'hf://a/b', secretRef: {name: 'A B'}}", "schema", "spec.model.secretRef.name", "not allowed here"),
    Case("model: {uri: 'hf://a/b', name: 'a@b'}", "schema", "spec.model.name", "not allowed here"),
    Case("model: {uri: 'hf://a/b', name: ''}", "schema", "spec.model.name", "not allowed here"),
    Case("model: {uri: 'hf://a/b', name: x, aliases: [x]}", "rule", "spec.model.aliases", "repeats the model's name; remove it"),
    Case("model: {uri: 'hf://a/b', aliases: [x, x]}", "schema", "spec.model.aliases", "listed twice; remove one"),
    Case(f"model: {{uri: 'hf://a/b', aliases: [{MANY}]}}", "schema", "spec.model.aliases", "too long: at most 16"),
    Case("model: {uri: 'hf://a/b', dtype: bfloat}", "schema", "spec.model.dtype", "did you mean bfloat16?"),
    Case("model: {uri: 'hf://a/b', maxModelLen: 1}", "schema", "spec.model.maxModelLen", "must be at least 16, not 1"),
    Case("model: {uri: 'hf://a/b', maxModelLen: '4k'}", "schema", "spec.model.maxModelLen", "must be a whole number, not '4k'"),
    Case("model: {uri: 'hf://a/b', quantization: gguf}", "schema", "spec.model.quantization", "must be"),
    Case("model: {uri: 'hf://a/b', quantization: fp8}", "rule", "spec.model", "on CPUs, write int8 or int8-weight-only"),
    Case("{accelerator: {type: Nvidia}, model: {uri: 'hf://a/b', quantization: int8}}", "rule", "spec.model", "on accelerators, write fp8"),
    Case("{accelerator: {type: Nvidia}, model: {uri: 'hf://a/b', quantization: int8-weight-only}}", "rule", "spec.model", "write fp8"),
    # Replicas and scaling
    Case("replicas: '2'", "schema", "spec.replicas", "must be a whole number, not '2'"),
    Case("replicas: 2.5", "schema", "spec.replicas", "must be a whole number, not 2.5"),
    Case("replicas: -1", "schema", "spec.replicas", "must be at least 0, not -1"),
    Case("replicas: 5000", "schema", "spec.replicas", "must be at most 1000, not 5000"),
    Case("scaling: {}", "schema", "spec.scaling.maxReplicas", "is required"),
    Case("scaling: {maxReplicas: 2, provider: KEDA}", "schema", "spec.scaling.provider", "did you mean Keda?"),
    Case("scaling: {minReplicas: 3, maxReplicas: 2}", "rule", "spec.scaling.minReplicas", "larger than maxReplicas; lower it"),
    # The engine
    Case("engine: {kvCacheDtype: fp8}", "rule", "spec.engine", "needs spec.accelerator; on CPUs, write auto"),
    Case("engine: {blockSize: 24}", "schema", "spec.engine.blockSize", "must be a multiple of 16, not 24"),
    Case("engine: {blockSize: 512}", "schema", "spec.engine.blockSize", "must be at most 256, not 512"),
    Case("engine: {kvCacheMemory: lots}", "schema", "spec.engine.kvCacheMemory", "must be a quantity such as 2, 500m or 16Gi"),
    Case("engine: {kvCacheMemory: 1.5}", "schema", "spec.engine.kvCacheMemory", "must be a quantity"),
    Case("engine: {depth: 3}", "schema", "spec.engine.depth", "must be 1 or 2, not 3"),
    Case("engine: {maxNumSeqs: 0}", "schema", "spec.engine.maxNumSeqs", "must be at least 1, not 0"),
    Case("engine: {enablePrefixCaching: 'yes'}", "schema", "spec.engine.enablePrefixCaching", "must be true or false, not 'yes'"),
    Case("engine: {generationDefaults: model}", "schema", "spec.engine.generationDefaults", "did you mean Model?"),
    Case("engine: {image: 'Not An Image'}", "schema", "spec.engine.image", "not allowed here"),
    Case("engine: {drainTimeoutSeconds: 4000}", "schema", "spec.engine.drainTimeoutSeconds", "must be at most 3600"),
    Case("engine: {startTimeoutSeconds: 1}", "schema", "spec.engine.startTimeoutSeconds", "must be at least 10"),
    Case("engine: {seed: -1}", "schema", "spec.engine.seed", "must be at least 0"),
    Case("engine: {gpuMemoryUtilizationPercent: 90}", "rule", "spec.engine", "needs spec.accelerator; on CPUs, set engine.kvCacheMemory"),
    Case("engine: []", "schema", "spec.engine", "must be an object, not a list"),
    # Devices and resources
    Case("accelerator: {type: nvidia}", "schema", "spec.accelerator.type", "did you mean Nvidia?"),
    Case("accelerator: {count: 1}", "schema", "spec.accelerator.type", "is required"),
    Case("accelerator: {type: Nvidia, count: 2}", "rule", "spec.accelerator", "must equal parallelism.tensor x pipeline x data"),
    Case("parallelism: {tensor: 0}", "schema", "spec.parallelism.tensor", "must be at least 1, not 0"),
    Case("resources: {limits: {nvidia.com/gpu: 1}}", "rule", "spec.resources.limits", "accelerators are asked for in spec.accelerator"),
    Case("resources: {requests: {ram: 1Gi}}", "rule", "spec.resources.requests", "knows cpu, memory, ephemeral-storage"),
    Case("resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}", "rule", "spec.resources.requests", "raise the limit"),
    Case("resources: {limits: {memory: 4GB}}", "schema", "spec.resources.limits.memory", "must be a quantity"),
    # Placement and pods
    Case("placement: {tolerations: [{value: x}]}", "rule", "spec.placement.tolerations[0].key", "operator Equal needs a key"),
    Case("placement: {tolerations: [{operator: Exists, value: x}]}", "rule", "spec.placement.tolerations[0].value", "remove it, or write"),
    Case("placement: {nodeSelector: {pool: 3}}", "schema", "spec.placement.nodeSelector.pool", "must be text, not 3; put it in quotes"),
    Case("placement: {spot: Always}", "schema", "spec.placement.spot", "must be 'Forbid', 'Prefer' or 'Require'"),
    Case("placement: {topologySpread: [{}]}", "schema", "spec.placement.topologySpread[0].topologyKey", "is required"),
    Case("podTemplate: {env: [{name: PORT, value: '1'}]}", "rule", "spec.podTemplate.env[0].name", "set by Quire and cannot"),
    Case("podTemplate: {env: [{name: A}, {name: A}]}", "schema", "spec.podTemplate.env", "listed twice; remove one"),
    Case("podTemplate: {env: [{name: A, value: 1}]}", "schema", "spec.podTemplate.env[0].value", "must be text, not 1; put it in quotes"),
    Case("podTemplate: {env: [{name: '1A'}]}", "schema", "spec.podTemplate.env[0].name", "not allowed here"),
    Case("podTemplate: {labels: {quire.dev/role: x}}", "rule", "spec.podTemplate.labels", "set by Quire; choose other keys"),
    Case("podTemplate: {annotations: {quire.dev/x: x}}", "rule", "spec.podTemplate.annotations", "set by Quire; choose other keys"),
    Case(f"podTemplate: {{labels: {{a: {LONG}}}}}", "schema", "spec.podTemplate.labels.a", "is too long: at most 63"),
    Case("podTemplate: {imagePullSecrets: [regcred]}", "schema", "spec.podTemplate.imagePullSecrets[0]", "must be an object"),
    # Rollouts, adapters
    Case("rollout: {strategy: Rolling}", "schema", "spec.rollout.strategy", "must be 'Surge' or 'Recreate'"),
    Case("rollout: {revisionHistoryLimit: 0}", "schema", "spec.rollout.revisionHistoryLimit", "must be at least 1"),
    Case("rollout: {canary: {steps: []}}", "schema", "spec.rollout.canary.steps", "is too short: at least 1"),
    Case("rollout: {canary: {steps: [5, 100]}}", "rule", "spec.rollout.canary.steps", "between 1 and 99"),
    Case("adapters: {}", "schema", "spec.adapters", "must be a list, not an object"),
    Case("adapters: [{name: a, uri: 'hf://a/b'}, {name: a, uri: 'hf://a/b'}]", "schema", "spec.adapters", "used twice"),
    Case("{model: {uri: 'hf://a/b', name: a}, adapters: [{name: a, uri: 'hf://a/b'}]}", "rule", "spec.adapters", "rename it"),
    # What this version lacks
    Case("{accelerator: {type: Nvidia, count: 2}, parallelism: {tensor: 2}}", "condition", "spec.parallelism.tensor", "remove it"),
    Case("adapters: [{name: a, uri: 'hf://a/b'}]", "condition", "spec.adapters", "needs LoRA adapters in the engine; remove it"),
    Case("disaggregation: {}", "condition", "spec.disaggregation", "needs the hand-off of KV blocks between workers; remove it"),
    Case("model: {uri: 'hf://a/b', quantization: awq}", "condition", "spec.model.quantization", "int8 or int8-weight-only, or remove it"),
    Case("model: {uri: 'hf://a/b', quantization: gptq}", "condition", "spec.model.quantization", "int8 or int8-weight-only, or remove it"),
    Case("model: {uri: 'hf://a/b', quantization: int4}", "condition", "spec.model.quantization", "needs 4-bit weights in the engine"),
    Case("engine: {speculation: NGram}", "condition", "spec.engine.speculation", "needs speculative decoding in the engine; remove it"),
    Case("placement: {spot: Prefer}", "condition", "spec.placement.spot", "set the release's spot label, or write Forbid"),
]  # fmt: skip
IDS = [case.spec[:80] for case in CASES]


def of(*refused_by: str) -> list[Any]:
    """Parameters for the cases that these refuse."""
    return [pytest.param(case, id=case.spec[:80]) for case in CASES if case.refused_by in refused_by]


def name_of(case: Case) -> str:
    """Unique, and so ordered that messages are easy to find."""
    return f"case-{CASES.index(case):03d}"


def test_the_table_is_long_enough_and_has_no_case_twice() -> None:
    assert len(CASES) >= 60
    assert len({case.spec for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", of("schema", "rule", "unknown", "text"))
def test_the_operator_refuses_it_naming_field_and_fix(document: Make, case: Case) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        parse_service(document(case.spec))

    assert [
        problem for problem in caught.value.problems if problem.path == case.path and case.fix in problem.message
    ], caught.value


@pytest.mark.parametrize("case", of("condition"))
def test_the_operator_does_not_ignore_what_it_lacks(document: Make, case: Case) -> None:
    service = parse_service(document(case.spec))

    with pytest.raises(NotYetSupportedError) as caught:
        refuse_unsupported(service, Platform())

    (problem,) = caught.value.problems
    assert problem.path == case.path
    assert case.fix in problem.message


@pytest.mark.parametrize("case", of("schema", "rule", "unknown", "text", "condition"))
def test_whatever_gets_past_the_api_server_is_shown_in_a_condition(document: Make, case: Case) -> None:
    stored = document(case.spec)
    stored["metadata"] |= {"namespace": "team-a", "uid": "u-1", "generation": 3}

    decision = decide_service(ServiceSnapshot(document=stored, now=datetime(2026, 1, 1, tzinfo=UTC)), Platform())

    (accepted,) = (one for one in decision.status["conditions"] if one["type"] == "Accepted")
    assert accepted["status"] == "False"
    assert accepted["reason"] == ("NotYetSupported" if case.refused_by == "condition" else "InvalidSpec")
    assert case.path in accepted["message"]
    assert case.fix in accepted["message"]
    assert decision.manifests is None


@pytest.mark.parametrize("case", of("rule"))
def test_a_current_api_server_refuses_it_with_the_same_words(document: Make, case: Case) -> None:
    messages = broken_in_cel(INFERENCE_SERVICE, document(case.spec))

    assert any(case.fix in message for message in messages)


@pytest.fixture(scope="module")
def told(install_crds: list[str], kubectl: Any) -> str:
    """What a real API server says to all structurally wrong specs at once; nothing is stored."""
    assert install_crds
    documents = [
        {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": name_of(case)},
            "spec": {"model": {"uri": "pvc://models/llama"}, **(yaml.safe_load(case.spec) or {})},
        }
        for case in CASES
        if case.refused_by in {"schema", "condition"}
    ]
    done = kubectl.run("create", "--dry-run=server", "--validate=false", "-f", "-", stdin=yaml.safe_dump_all(documents))
    text: str = done.stdout + done.stderr
    return text


@pytest.mark.parametrize("case", of("schema"))
def test_every_api_server_refuses_it_naming_the_field(told: str, case: Case) -> None:
    refusals = [line for line in told.splitlines() if f'"{name_of(case)}" is invalid' in line]

    assert f"{name_of(case)} created" not in told
    following = told[told.index(refusals[0]) :].split("\nThe InferenceService", maxsplit=1)[0] if refusals else told
    assert case.path.rpartition(".")[2].partition("[")[0] in following


@pytest.mark.parametrize("case", of("condition"))
def test_an_api_server_stores_what_only_this_version_lacks(told: str, case: Case) -> None:
    assert f"{name_of(case)} created" in told


@pytest.mark.parametrize("case", of("unknown"))
def test_kubectl_refuses_an_unknown_field(install_crds: list[str], kubectl: Any, document: Make, case: Case) -> None:
    assert install_crds
    done = kubectl.run(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(document(case.spec))
    )

    assert done.returncode != 0
    assert f'unknown field "{case.path.rpartition(".")[2]}"' in done.stderr
