"""The manifests of a service and of the routers: golden files, probes and times, what makes a revision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_contract.router_config import decode_config
from quire_operator.api.validation import InvalidResourceError, NotYetSupportedError, parse_service
from quire_operator.desired_state import desired_state, router_state
from quire_operator.platform import ModelCache, Platform, SpotPool
from quire_operator.revisions import current_revision, revision_name

Make = Callable[..., dict[str, Any]]
Manifest = dict[str, Any]

FULL = """
model: {uri: 'pvc://models/llama-8b', name: llama-3.1-8b, aliases: [llama], dtype: bfloat16, quantization: fp8,
  maxModelLen: 32768}
replicas: 3
engine: {maxNumSeqs: 256, maxNumBatchedTokens: 8192, blockSize: 32, enablePrefixCaching: false, gpuMemoryUtilizationPercent: 92, seed: 7,
  generationDefaults: Neutral, kvCacheDtype: fp8, depth: 2, computeThreads: 4, maxNumQueuedRequests: 500,
  drainTimeoutSeconds: 120, startTimeoutSeconds: 900}
resources: {requests: {cpu: 4, memory: 32Gi}, limits: {memory: 64Gi}}
accelerator: {type: Nvidia, product: NVIDIA-H100-80GB-HBM3}
placement: {nodeSelector: {pool: llm}, spot: Require,
  topologySpread: [{topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule}]}
podTemplate: {labels: {team: search}, annotations: {note: hello}, env: [{name: NCCL_DEBUG, value: 'costs $(5)'}],
  imagePullSecrets: [{name: registry}], priorityClassName: high, runtimeClassName: nvidia}
"""
DEFAULT = Platform()
PLATFORM = Platform(
    namespace="serving",
    image_pull_secrets=("mirror",),
    spot=SpotPool(label_key="cloud.example/spot", label_value="true"),
)


FETCHED = """
model: {uri: 'hf://meta-llama/Llama-3.1-8B', revision: 0e9e39f, secretRef: {name: hub}}
"""
FETCHING_PLATFORM = Platform(
    namespace="serving",
    model_cache=ModelCache(kind="PersistentVolumeClaim", storage_class="fast"),
    hf_endpoint="https://hub.internal:8443",
    proxy_env={"HTTPS_PROXY": "http://proxy.internal:3128", "NO_PROXY": ".internal"},
    ca_config_map="private-ca",
    metrics_from=({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},),
    model_cidrs=("10.0.0.0/8",),
)


def workers_of(document: dict[str, Any], platform: Platform = DEFAULT) -> list[Manifest]:
    """Everything of one service."""
    service = parse_service(document)
    return desired_state(service, [current_revision(service, platform)], platform)


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def check_golden(manifests: list[Manifest], path: Path) -> None:
    """Compares with the file; write it anew by deleting it and running the test twice."""
    if not path.exists():
        path.write_text(yaml.safe_dump_all(manifests, sort_keys=False, width=140))
        pytest.fail(f"{path} was missing and has been written; look at it")
    assert manifests == list(yaml.safe_load_all(path.read_text()))


def test_the_quickstart_renders_as_committed(repository: Path) -> None:
    document = yaml.safe_load((repository / "examples" / "quickstart.yaml").read_text())
    service = parse_service(document)

    manifests = [*workers_of(document), *router_state([service], Platform())]

    check_golden(manifests, repository / "tests/operator/golden/quickstart.yaml")


def test_a_service_that_uses_every_field_renders_as_committed(document: Make, repository: Path) -> None:
    manifests = workers_of(document(FULL), PLATFORM)

    check_golden(manifests, repository / "tests/operator/golden/full.yaml")


def test_a_fetched_model_renders_as_committed(document: Make, repository: Path) -> None:
    manifests = workers_of(document(FETCHED), FETCHING_PLATFORM)

    check_golden(manifests, repository / "tests/operator/golden/fetched.yaml")


def test_rendering_is_a_function(document: Make) -> None:
    assert workers_of(document(FULL), PLATFORM) == workers_of(document(FULL), PLATFORM)


def test_a_pod_is_given_longer_to_end_than_it_drains(document: Make) -> None:
    pod = of_kind(workers_of(document("engine: {drainTimeoutSeconds: 300}")), "Deployment")["spec"]["template"]["spec"]

    args = pod["containers"][0]["args"]

    assert args[args.index("--drain-timeout") + 1] == "300"
    assert pod["terminationGracePeriodSeconds"] > 300


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("{}", []),
        ("model: {uri: 'hf://a/b', quantization: int8}", ["int8"]),
        ("model: {uri: 'hf://a/b', quantization: int8-weight-only}", ["int8-weight-only"]),
        ("{accelerator: {type: Nvidia}, model: {uri: 'hf://a/b', quantization: fp8}}", ["fp8"]),
    ],
)
def test_the_worker_quantises_what_the_spec_says_and_else_decides_itself(
    document: Make, spec: str, asked: list[str]
) -> None:
    platform = Platform(model_sources=frozenset({"file", "pvc", "hf"}))

    args = of_kind(workers_of(document(spec), platform), "Deployment")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]

    assert [args[i + 1] for i, arg in enumerate(args) if arg == "--quantization"] == asked


def test_a_worker_that_loads_slowly_is_left_alone_and_one_that_hangs_is_not(document: Make) -> None:
    deployment = of_kind(workers_of(document("engine: {startTimeoutSeconds: 60}")), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]

    startup, args = container["startupProbe"], container["args"]

    # The startup probe asks only whether the process answers; /health judges the load by its progress from then on.
    assert startup["httpGet"]["path"] == container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert startup["periodSeconds"] * startup["failureThreshold"] == 120
    assert args[args.index("--load-timeout") + 1] == "60"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["httpGet"]["port"] for probe in probes} == {"health"}, "which a busy server cannot hold up"
    assert {"name": "health", "containerPort": 8002, "protocol": "TCP"} in container["ports"]
    assert args[args.index("--health-port") + 1] == "$(HEALTH_PORT)"
    assert deployment["spec"]["progressDeadlineSeconds"] > 120 + 60


def test_every_folder_that_a_pod_may_fill_has_a_limit(document: Make) -> None:
    for spec in ("", FULL, FETCHED):
        pod = of_kind(workers_of(document(spec), PLATFORM), "Deployment")["spec"]["template"]["spec"]

        assert all(volume["emptyDir"].get("sizeLimit") for volume in pod["volumes"] if "emptyDir" in volume)


def test_children_belong_to_their_service_but_for_the_claim_that_others_share(document: Make) -> None:
    stored = document(FETCHED)
    stored["metadata"] |= {"uid": "u-1", "namespace": "team-a"}

    manifests = workers_of(stored, FETCHING_PLATFORM)

    owned = {manifest["kind"]: manifest["metadata"].get("ownerReferences") for manifest in manifests}
    assert owned.pop("PersistentVolumeClaim") is None
    for references in owned.values():
        assert references == [
            {
                "apiVersion": "quire.dev/v1alpha1",
                "kind": "InferenceService",
                "name": "llama",
                "uid": "u-1",
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]


def test_a_router_is_told_how_long_its_streams_may_go_on_and_given_longer(document: Make) -> None:
    manifests = router_state([parse_service(document())], Platform(router_drain_timeout_s=120))

    pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]

    args = pod["containers"][0]["args"]
    assert args[args.index("--shutdown-timeout") + 1] == "120"
    assert pod["terminationGracePeriodSeconds"] > 120


def test_addresses_names_and_folders_come_in_as_variables(document: Make) -> None:
    container = of_kind(workers_of(document()), "Deployment")["spec"]["template"]["spec"]["containers"][0]

    defined = {variable["name"] for variable in container["env"]}
    used = {arg[2:-1] for arg in container["args"] if arg.startswith("$(")}

    assert used == {
        "MODEL_DIR", "HOST", "PORT", "HEALTH_PORT", "POD_NAME", "TRUST_DIR", "KV_EVENTS_ENDPOINT", "KV_REPLAY_ENDPOINT", "COMPUTE_THREADS",
    }  # fmt: skip
    assert used <= defined


def test_selectors_match_the_pods_and_only_those_of_their_revision(document: Make) -> None:
    manifests = workers_of(document())
    deployment, service = of_kind(manifests, "Deployment"), of_kind(manifests, "Service")

    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert "quire.dev/revision" in deployment["spec"]["selector"]["matchLabels"]
    assert "quire.dev/revision" not in service["spec"]["selector"]


@pytest.mark.parametrize(
    "change",
    [
        "engine: {maxNumSeqs: 8}",
        "engine: {image: 'registry.example/worker:2'}",
        "resources: {limits: {memory: 4Gi}}",
        "podTemplate: {labels: {a: b}}",
        "model: {uri: 'pvc://models/llama', aliases: [x]}",
    ],
)
def test_a_change_that_shapes_pods_makes_a_new_revision(document: Make, change: str) -> None:
    before, after = parse_service(document()), parse_service(document(change))

    assert revision_name(before, Platform()) != revision_name(after, Platform())


@pytest.mark.parametrize(
    "change", ["replicas: 7", "engine: {enablePrefixCaching: true}", "engine: {}", "scaling: {maxReplicas: 9}"]
)
def test_a_change_that_shapes_no_pod_keeps_the_revision(document: Make, change: str) -> None:
    before, after = parse_service(document()), parse_service(document(change))

    assert revision_name(before, Platform()) == revision_name(after, Platform())


def test_a_release_with_another_default_keeps_revisions_but_another_image_does_not(document: Make) -> None:
    service = parse_service(document())

    same = revision_name(service, Platform(worker_requests={"cpu": "3"}))

    assert same == revision_name(service, Platform())
    assert revision_name(service, Platform(worker_image="quire-worker:9")) != same


def test_a_stored_template_is_used_as_it_is(document: Make) -> None:
    service = parse_service(document())
    stored = current_revision(service, Platform())

    manifests = desired_state(service, [stored], Platform(worker_image="quire-worker:9", run_as_user=1000))

    assert of_kind(manifests, "Deployment")["spec"]["template"] == stored.template


def test_derived_names_fit_63_characters(document: Make) -> None:
    manifests = workers_of(document(name="a" * 40))

    assert all(len(manifest["metadata"]["name"]) <= 63 for manifest in manifests)


def test_the_router_learns_every_served_name(document: Make) -> None:
    first = parse_service(document("model: {uri: 'file:x', name: m, aliases: [n]}", name="one"))
    second = parse_service(document(name="two"))

    config = of_kind(router_state([first, second], Platform()), "ConfigMap")["data"]["router.json"]

    models = {entry.name: entry.service for entry in decode_config(config.encode()).models}
    assert models == {"m": "default/one", "n": "default/one", "two": "default/two"}


def test_a_name_served_twice_is_refused(document: Make) -> None:
    first = parse_service(document(name="one"))
    second = parse_service(document("model: {uri: 'file:x', name: one}", name="two"))

    with pytest.raises(InvalidResourceError, match="'two' serves 'one', which 'one' serves already"):
        router_state([first, second], Platform())


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("model: {uri: 's3://bucket/x'}", "spec.model.uri"),
        ("model: {uri: 'https://host/x.tar'}", "spec.model.uri"),
    ],
)
def test_what_the_platform_lacks_is_refused_not_ignored(document: Make, spec: str, path: str) -> None:
    with pytest.raises(NotYetSupportedError) as caught:
        workers_of(document(spec), Platform(model_sources=frozenset({"file", "pvc", "hf"})))

    assert [problem.path for problem in caught.value.problems] == [path]


def test_spot_nodes_need_a_platform_that_names_them(document: Make) -> None:
    with pytest.raises(NotYetSupportedError, match=r"spec\.placement\.spot: this platform names no spot nodes"):
        workers_of(document("placement: {spot: Prefer}"))
