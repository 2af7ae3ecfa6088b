"""The rendered command lines are ones that the programs accept, expanded as the kubelet does it, with what the spec says in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire_cli.local.expansion import expand
from quire_operator.api.validation import parse_service
from quire_operator.desired_state import desired_state, router_state
from quire_operator.platform import ModelCache, Platform
from quire_operator.revisions import current_revision
from quire_router.config import parse_args as router_args
from quire_worker.config import parse_args as worker_args
from quire_worker.fetch.config import parse_args as fetch_args

Make = Callable[..., dict[str, Any]]
Manifest = dict[str, Any]

FULL = """
{model: {uri: 'pvc://c/m', maxModelLen: 4096, dtype: float32, task: embed, pooling: last}, accelerator: {type: Nvidia},
engine: {maxNumSeqs: 8, maxNumBatchedTokens: 512, blockSize: 32, enablePrefixCaching: false, kvCacheMemory: 1Gi,
  gpuMemoryUtilizationPercent: 80, seed: 3, generationDefaults: Neutral, depth: 2, computeThreads: 2,
  maxNumQueuedRequests: 9, maxNumQueuedTokens: 999, drainTimeoutSeconds: 7, startTimeoutSeconds: 77,
  schedulingPolicy: ShortestJobFirst, queueTimeoutSeconds: 20, requestTimeoutSeconds: 300,
  toolCallParser: hermes, reasoningParser: think}}
"""


def command_line(container: Manifest) -> list[str]:
    """Arguments as the process gets them; a field of the pod is told by its path."""
    known: dict[str, str] = {}
    for variable in container["env"]:
        known[variable["name"]] = expand(variable["value"], known) if "value" in variable else "4"
    return [expand(argument, known) for argument in container["args"]]


def pod_of(manifests: list[Manifest]) -> Manifest:
    (deployment,) = (one for one in manifests if one["kind"] == "Deployment")
    pod: Manifest = deployment["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_worker_accepts_its_command_line(document: Make, host: str) -> None:
    service, platform = parse_service(document(FULL)), Platform(bind_host=host)
    pod = pod_of(desired_state(service, [current_revision(service, platform)], platform))

    config = worker_args(command_line(pod["containers"][0]))

    assert config.model == Path("/srv/quire/claim/m")
    assert (config.host, config.port, config.model_names) == (host, 8000, ("llama",))
    assert (config.load_timeout_s, config.drain_timeout_s, config.max_model_len) == (77, 7, 4096)
    assert (config.scheduling_policy, config.queue_timeout_s, config.request_timeout_s) == ("sjf", 20, 300)
    assert (config.tool_call_parser, config.reasoning_parser) == ("hermes", "think")
    assert (config.task, config.pooling) == ("embed", "last")
    assert (config.kv_cache_memory_bytes, config.gpu_memory_utilization, config.depth) == (2**30, 0.8, 2)


@pytest.mark.parametrize(
    ("model", "scheme"),
    [
        ("{uri: 'hf://a/b', revision: v1, secretRef: {name: s}}", "hf"),
        ("{uri: 's3://bucket/x'}", "s3"),
        ("{uri: 'https://host/$(POD_NAME)/x.tar?a=$b'}", "https"),
    ],
)
@pytest.mark.parametrize("kind", ["EmptyDir", "PersistentVolumeClaim"])
def test_the_fetcher_accepts_its_command_line(document: Make, model: str, scheme: str, kind: Any) -> None:
    service = parse_service(document(f"model: {model}"))
    platform = Platform(
        model_cache=ModelCache(kind=kind, size="1Gi"), s3_endpoint="http://minio:9000", ca_config_map="ca"
    )
    pod = pod_of(desired_state(service, [current_revision(service, platform)], platform))

    config = fetch_args(command_line(pod["initContainers"][0]), {"HF_TOKEN": "t"})

    assert config.uri == service.spec.model.uri
    assert config.revision == service.spec.model.revision
    assert config.scheme == scheme
    assert config.max_bytes == (2**30 if kind == "EmptyDir" else None)
    assert config.s3_endpoint == ("http://minio:9000" if scheme == "s3" else None)
    assert config.token == ("t" if scheme == "hf" else None)
    assert (config.progress_host, config.progress_port) == ("0.0.0.0", 8001)


def test_the_router_accepts_its_command_line(document: Make) -> None:
    platform = Platform(release="prod", namespace="llm", router_drain_timeout_s=90, router_shutdown_delay_s=4)
    pod = pod_of(router_state([parse_service(document())], platform))

    settings = router_args(command_line(pod["containers"][0]))

    assert (settings.kubernetes, settings.config) == (True, None)
    assert (settings.release, settings.release_namespace) == ("prod", "llm")
    assert (settings.shutdown_delay_s, settings.shutdown_timeout_s) == (4, 90)
    assert pod["terminationGracePeriodSeconds"] > 4 + 90
