"""The worker's pod template, its Deployment and what stands beside it.

The container's command line is the one that `quire up` runs: addresses, names and folders come in as $(VAR), so that whoever
runs the container decides them. This module must not know replicas' history or status; `desired_state` puts the objects together.
"""

import json
import posixpath
from collections.abc import Sequence
from decimal import ROUND_CEILING

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.model_uri import parse_model_uri
from quire_operator.api.types import quantity_value
from quire_operator.api.workload import EngineSpec
from quire_operator.manifests import fetch, network, parts
from quire_operator.manifests.parts import Manifest
from quire_operator.manifests.placement import placement_fields
from quire_operator.platform import Platform

CONTAINER = "worker"
COMMAND = "quire-worker"
LOAD_TIMEOUT_FLAG = "--load-timeout"
GRACE_MARGIN_S = 15
_PROGRESS_MARGIN_S = 120
_FETCH_BUDGET_S = 3600
_STARTUP_PERIOD_S = 2
_ANSWERS_WITHIN_S = 120
_POLICIES = {"FirstComeFirstServed": "fcfs", "Priority": "priority", "ShortestJobFirst": "sjf"}
_CLAIM_FOLDER = "claim"
VOLUME_MODEL = fetch.VOLUME_MODEL
VOLUME_SHM = "shm"


def worker_image(service: InferenceService, platform: Platform) -> str:
    """The service's own image, else the release's for its devices."""
    default = platform.worker_cuda_image if service.spec.accelerator else platform.worker_image
    return service.spec.engine.image or default


def service_labels(service: InferenceService, role: str) -> dict[str, str]:
    """Labels that select every pod of one role, whatever its revision."""
    return {names.LABEL_SERVICE: service.metadata.name, names.LABEL_ROLE: role}


def object_labels(service: InferenceService, role: str) -> dict[str, str]:
    """Labels of the service's objects."""
    return {**parts.common_labels(service.metadata.name, role), **service_labels(service, role)}


def pod_template(service: InferenceService, role: str, revision: str, platform: Platform) -> Manifest:
    """The template that a revision stores."""
    user = service.spec.pod_template
    labels = {**user.labels, **object_labels(service, role), names.LABEL_REVISION: revision}
    spec: Manifest = {
        "serviceAccountName": account_name(service),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": service.spec.engine.drain_timeout_seconds + GRACE_MARGIN_S,
        "securityContext": parts.pod_security(platform.run_as_user),
        **placement_fields(
            service.spec.placement, service.spec.accelerator, service_labels(service, role), platform.spot
        ),
        **_init_containers(service, platform),
        "containers": [_container(service, platform)],
        "volumes": _volumes(service, platform),
    }
    secrets = [*platform.image_pull_secrets, *(secret.name for secret in user.image_pull_secrets)]
    optional = {
        "imagePullSecrets": [{"name": name} for name in dict.fromkeys(secrets)],
        "priorityClassName": user.priority_class_name,
        "runtimeClassName": user.runtime_class_name,
        "schedulerName": user.scheduler_name,
    }
    spec.update({key: content for key, content in optional.items() if content})
    meta = {"labels": dict(sorted(labels.items())), "annotations": _annotations(service)}
    return {"metadata": meta, "spec": spec}


def deployment(
    service: InferenceService, *, name: str, role: str, revision: str, replicas: int, template: Manifest
) -> Manifest:
    """The Deployment of one role and revision. Its template never changes: a change of the spec is another revision."""
    selector = {**service_labels(service, role), names.LABEL_REVISION: revision}
    labels = {**object_labels(service, role), names.LABEL_REVISION: revision}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": parts.metadata(name, service.metadata.namespace, labels),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": _progress_deadline_s(service, template),
            "template": template,
        },
    }


def _progress_deadline_s(service: InferenceService, template: Manifest) -> int:
    """Longer than a pod may take by its own budgets, so that Kubernetes never gives up on a rollout that is going well."""
    fetching = _FETCH_BUDGET_S if fetch.fetches(template) else 0
    return service.spec.engine.start_timeout_seconds + _ANSWERS_WITHIN_S + _PROGRESS_MARGIN_S + fetching


def headless_service(service: InferenceService, role: str) -> Manifest:
    """Names for the workers; routers talk to the pods themselves."""
    ports = [
        (names.PORT_NAME_HTTP, names.PORT_HTTP),
        (names.PORT_NAME_EVENTS, names.PORT_EVENTS),
        (names.PORT_NAME_REPLAY, names.PORT_REPLAY),
    ]
    meta = parts.metadata(f"{service.metadata.name}-{role}", service.metadata.namespace, object_labels(service, role))
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "clusterIP": "None",
            "selector": service_labels(service, role),
            "ports": [{"name": name, "port": port, "targetPort": name, "protocol": "TCP"} for name, port in ports],
        },
    }


def disruption_budget(service: InferenceService, role: str, platform: Platform) -> Manifest:
    """One worker of the service at a time."""
    meta = parts.metadata(f"{service.metadata.name}-{role}", service.metadata.namespace, object_labels(service, role))
    return parts.disruption_budget(platform.pod_disruption_budget_api, meta, service_labels(service, role))


def network_policy(service: InferenceService, role: str, templates: Sequence[Manifest], platform: Platform) -> Manifest:
    """Fences in the workers of all revisions, whose stored templates are `templates`."""
    meta = parts.metadata(f"{service.metadata.name}-{role}", service.metadata.namespace, object_labels(service, role))
    selector = service_labels(service, role)
    return network.network_policy(service, meta=meta, selector=selector, templates=templates, platform=platform)


def account_name(service: InferenceService) -> str:
    """Name of the workers' ServiceAccount."""
    return f"{service.metadata.name}-worker"


def model_dir(service: InferenceService, platform: Platform) -> str:
    """The folder inside the container that holds the model's files."""
    source = parse_model_uri(service.spec.model.uri)
    if source.scheme == "file":
        return posixpath.join(platform.model_root, source.path)
    if source.scheme == "pvc":
        return posixpath.join(platform.model_root, _CLAIM_FOLDER, source.path).rstrip("/")
    return fetch.model_dir(service, platform)


def engine_args(engine: EngineSpec) -> list[str]:
    """Flags for what the service states about the engine; what it leaves open, the worker decides."""
    valued = {
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": engine.max_num_batched_tokens,
        "--block-size": engine.block_size,
        "--kv-cache-memory-bytes": _bytes(engine.kv_cache_memory),
        "--gpu-memory-utilization": _fraction(engine.gpu_memory_utilization_percent),
        "--seed": engine.seed,
        "--depth": engine.depth,
        "--max-num-queued-reqs": engine.max_num_queued_requests,
        "--max-num-queued-tokens": engine.max_num_queued_tokens,
        "--scheduling-policy": _POLICIES.get(engine.scheduling_policy or ""),
        "--queue-timeout": engine.queue_timeout_seconds,
        "--request-timeout": engine.request_timeout_seconds,
        "--tool-call-parser": engine.tool_call_parser,
        "--reasoning-parser": engine.reasoning_parser,
    }
    args = [part for flag, setting in valued.items() if setting is not None for part in (flag, str(setting))]
    if not engine.enable_prefix_caching:
        args.append("--no-enable-prefix-caching")
    if engine.generation_defaults == "Neutral":
        args += ["--generation-config", "vllm"]
    if engine.kv_cache_dtype != "auto":
        args += ["--kv-cache-dtype", engine.kv_cache_dtype]
    return args


def _args(service: InferenceService) -> list[str]:
    model, engine = service.spec.model, service.spec.engine
    args = ["--model", f"$({parts.ENV_MODEL_DIR})"]
    args += ["--served-model-name", *(parts.literal(name) for name in service.served_names)]
    args += ["--host", f"$({names.ENV_HOST})", "--port", f"$({names.ENV_PORT})"]
    args += ["--health-port", f"$({names.ENV_HEALTH_PORT})"]
    args += ["--pod-name", f"$({names.ENV_POD_NAME})", "--trust-dir", f"$({names.ENV_TRUST_DIR})"]
    args += ["--kv-events-endpoint", f"$({names.ENV_EVENTS_ENDPOINT})"]
    args += ["--kv-replay-endpoint", f"$({names.ENV_REPLAY_ENDPOINT})"]
    args += ["--device", "cuda" if service.spec.accelerator else "cpu", "--dtype", model.dtype]
    args += ["--compute-threads", f"$({names.ENV_COMPUTE_THREADS})"]
    args += ["--drain-timeout", str(engine.drain_timeout_seconds)]
    args += [LOAD_TIMEOUT_FLAG, str(engine.start_timeout_seconds)]
    if model.max_model_len is not None:
        args += ["--max-model-len", str(model.max_model_len)]
    if model.quantization is not None:
        args += ["--quantization", model.quantization]
    if model.task is not None:
        args += ["--task", model.task]
    if model.pooling is not None:
        args += ["--pooling", model.pooling]
    return args + engine_args(engine)


def _init_containers(service: InferenceService, platform: Platform) -> Manifest:
    """The model fetcher, where the model is not at hand; it comes with the worker's image."""
    if not fetch.is_fetched(service):
        return {}
    return {"initContainers": [fetch.init_container(service, worker_image(service, platform), platform)]}


def _container(service: InferenceService, platform: Platform) -> Manifest:
    """Probes: once the process answers, /health decides about restarts, while it loads by the load's progress, later by its steps.

    A startup probe on /ready would have to choose between killing a slow load and waiting for a hung one. They ask the health port,
    which a worker's own thread serves: a server that is busy is slow, not dead.
    """
    return {
        "name": CONTAINER,
        "image": worker_image(service, platform),
        "imagePullPolicy": platform.image_pull_policy,
        "command": [COMMAND],
        "args": _args(service),
        "env": _env(service, platform),
        "ports": [
            {"name": names.PORT_NAME_HTTP, "containerPort": names.PORT_HTTP, "protocol": "TCP"},
            {"name": names.PORT_NAME_EVENTS, "containerPort": names.PORT_EVENTS, "protocol": "TCP"},
            {"name": names.PORT_NAME_REPLAY, "containerPort": names.PORT_REPLAY, "protocol": "TCP"},
            {"name": names.PORT_NAME_HEALTH, "containerPort": names.PORT_HEALTH, "protocol": "TCP"},
        ],
        "resources": _resources(service, platform),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "startupProbe": parts.http_probe(
            names.PATH_HEALTH,
            period_s=_STARTUP_PERIOD_S,
            timeout_s=2,
            failures=_ANSWERS_WITHIN_S // _STARTUP_PERIOD_S,
            port=names.PORT_NAME_HEALTH,
        ),
        "readinessProbe": parts.http_probe(
            names.PATH_READY, period_s=2, timeout_s=2, failures=2, port=names.PORT_NAME_HEALTH
        ),
        "livenessProbe": parts.http_probe(
            names.PATH_HEALTH, period_s=10, timeout_s=5, failures=3, port=names.PORT_NAME_HEALTH
        ),
        "securityContext": parts.container_security(),
        "volumeMounts": _mounts(service, platform),
    }


def _env(service: InferenceService, platform: Platform) -> list[Manifest]:
    threads = service.spec.engine.compute_threads
    from_limit = {"resourceFieldRef": {"containerName": CONTAINER, "resource": "limits.cpu", "divisor": "1"}}
    return [
        parts.field(names.ENV_POD_NAME, "metadata.name"),
        parts.field(names.ENV_POD_IP, "status.podIP"),
        parts.value(names.ENV_HOST, platform.bind_host),
        parts.value(names.ENV_PORT, str(names.PORT_HTTP)),
        parts.value(names.ENV_HEALTH_PORT, str(names.PORT_HEALTH)),
        parts.value(names.ENV_EVENTS_ENDPOINT, f"tcp://{_zmq_host(platform)}:{names.PORT_EVENTS}"),
        parts.value(names.ENV_REPLAY_ENDPOINT, f"tcp://{_zmq_host(platform)}:{names.PORT_REPLAY}"),
        parts.value(names.ENV_TRUST_DIR, parts.TRUST_PATH),
        parts.value(parts.ENV_MODEL_DIR, parts.literal(model_dir(service, platform))),
        parts.value(names.ENV_COMPUTE_THREADS, str(threads))
        if threads
        else {"name": names.ENV_COMPUTE_THREADS, "valueFrom": from_limit},
        *parts.scratch_env(),
        parts.value("TRITON_CACHE_DIR", f"{parts.CACHE_PATH}/triton"),
        *(parts.value(variable.name, parts.literal(variable.value)) for variable in service.spec.pod_template.env),
    ]


def _zmq_host(platform: Platform) -> str:
    return f"[{platform.bind_host}]" if ":" in platform.bind_host else platform.bind_host


def _resources(service: InferenceService, platform: Platform) -> Manifest:
    limits = dict(service.spec.resources.limits)
    open_defaults = {key: amount for key, amount in platform.worker_requests.items() if key not in limits}
    requests = {**open_defaults, **service.spec.resources.requests}
    if service.spec.accelerator:
        limits["nvidia.com/gpu"] = str(service.spec.accelerator.count)
    resources = {"requests": dict(sorted(requests.items())), "limits": dict(sorted(limits.items()))}
    return {key: amounts for key, amounts in resources.items() if amounts}


def _volumes(service: InferenceService, platform: Platform) -> list[Manifest]:
    volumes = [parts.trust_volume(platform.trust_secret), *parts.scratch_volumes()]
    source = parse_model_uri(service.spec.model.uri)
    if source.scheme == "pvc":
        claim = {"claimName": source.authority, "readOnly": True}
        volumes.append({"name": VOLUME_MODEL, "persistentVolumeClaim": claim})
    elif source.scheme != "file":
        volumes += fetch.volumes(platform)
    if service.spec.accelerator:
        # Collectives between processes of one pod need more shared memory than the runtime's 64 MiB.
        volumes.append({"name": VOLUME_SHM, "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
    return volumes


def _mounts(service: InferenceService, platform: Platform) -> list[Manifest]:
    mounts = [parts.trust_mount(), *parts.scratch_mounts()]
    scheme = parse_model_uri(service.spec.model.uri).scheme
    if scheme == "pvc":
        path = posixpath.join(platform.model_root, _CLAIM_FOLDER)
        mounts.append({"name": VOLUME_MODEL, "mountPath": path, "readOnly": True})
    elif scheme != "file":
        mounts.append(fetch.mount(platform))
    if service.spec.accelerator:
        mounts.append({"name": VOLUME_SHM, "mountPath": "/dev/shm"})  # noqa: S108  (a mount point inside the container)
    return mounts


def _annotations(service: InferenceService) -> dict[str, str]:
    model = service.spec.model
    ours = {
        parts.ANNOTATION_MODEL_URI: model.uri,
        names.ANNOTATION_SERVED_NAMES: json.dumps(list(service.served_names), separators=(",", ":")),
    }
    if model.revision:
        ours[parts.ANNOTATION_MODEL_REVISION] = model.revision
    return dict(sorted({**service.spec.pod_template.annotations, **ours}.items()))


def _bytes(quantity: str | None) -> int | None:
    return None if quantity is None else int(quantity_value(quantity).to_integral_value(ROUND_CEILING))


def _fraction(percent: int | None) -> str | None:
    return None if percent is None else f"{percent / 100:.2f}"
