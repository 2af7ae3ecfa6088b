"""How a model's files come into a pod: the init container that fetches them, and the cache that it fills.

A model lies in a folder named by its source, so that every pod of every revision with the same source finds the same files. The
worker sees the cache read-only. This module must not know the worker's container, or how files are fetched.
"""

import hashlib
import posixpath
from collections.abc import Iterator
from decimal import ROUND_CEILING
from urllib.parse import urlsplit

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.model_uri import FETCHED_SCHEMES, parse_model_uri
from quire_operator.api.types import quantity_value
from quire_operator.manifests import parts
from quire_operator.manifests.parts import Manifest
from quire_operator.platform import Platform

CONTAINER = "fetch"
COMMAND = "quire-fetch"
PORT_NAME_FETCH = "fetch"
VOLUME_MODEL = "model"
VOLUME_CA = "ca"
CA_PATH = "/etc/quire/ca"
CA_KEY = "ca.crt"
_FOLDER = "fetched"
_KEY_LENGTH = 16
_SECRET_KEYS = {
    "hf": ("HF_TOKEN",),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"),
    "http": ("TOKEN",),
    "https": ("TOKEN",),
}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_fetched(service: InferenceService) -> bool:
    """Whether the model comes over the network."""
    return parse_model_uri(service.spec.model.uri).scheme in FETCHED_SCHEMES


def model_key(uri: str, revision: str | None, scope: str = "") -> str:
    """Name of the model's folder in a cache: sixteen hexadecimal digits of the source, whatever its files are.

    Within a `scope` it is found by those who name the same scope only.
    """
    text = "\n".join([uri, revision or "", *([scope] if scope else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def cache_path(platform: Platform) -> str:
    """Where the cache is mounted, in both containers."""
    return posixpath.join(platform.model_root, _FOLDER)


def model_dir(service: InferenceService, platform: Platform) -> str:
    """The folder that is there, complete, when the init container has ended."""
    model = service.spec.model
    # A node's cache is shared by namespaces: what one fetched with its credentials, another must not find without any.
    is_private = platform.model_cache.kind == "HostPath" and model.secret_ref is not None
    scope = service.metadata.namespace or "default" if is_private else ""
    return posixpath.join(cache_path(platform), model_key(model.uri, model.revision, scope))


def init_container(service: InferenceService, image: str, platform: Platform) -> Manifest:
    """Fetches the model, or finds it fetched. Credentials of the source are in this container only."""
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": platform.image_pull_policy,
        "command": [COMMAND],
        "args": _args(service, platform),
        "env": _env(service, platform),
        "ports": [{"name": PORT_NAME_FETCH, "containerPort": names.PORT_FETCH, "protocol": "TCP"}],
        "resources": {key: dict(amounts) for key, amounts in platform.fetch_resources.items()},
        # It says why it failed as JSON in the file that Kubernetes shows in the pod's status; the log is the second best.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": parts.container_security(),
        "volumeMounts": [
            {"name": VOLUME_MODEL, "mountPath": cache_path(platform)},
            {"name": parts.VOLUME_TMP, "mountPath": parts.TMP_PATH},
            *([{"name": VOLUME_CA, "mountPath": CA_PATH, "readOnly": True}] if platform.ca_config_map else []),
        ],
    }


def volumes(platform: Platform) -> list[Manifest]:
    """The cache and what the init container needs beside it."""
    extra = [{"name": VOLUME_CA, "configMap": {"name": platform.ca_config_map}}] if platform.ca_config_map else []
    return [{"name": VOLUME_MODEL, **_cache_volume(platform)}, *extra]


def mount(platform: Platform) -> Manifest:
    """The cache in the worker's container."""
    return {"name": VOLUME_MODEL, "mountPath": cache_path(platform), "readOnly": True}


def cache_claim(namespace: str | None, platform: Platform) -> Manifest:
    """The claim that all pods of a namespace share. To be created if missing, never changed, never deleted: it has no owner."""
    cache = platform.model_cache
    spec: Manifest = {"accessModes": [cache.access_mode], "resources": {"requests": {"storage": cache.size}}}
    if cache.storage_class is not None:
        spec["storageClassName"] = cache.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": parts.metadata(cache.claim, namespace, parts.common_labels(platform.release, "model-cache")),
        "spec": spec,
    }


def ports_reached(template: Manifest) -> list[int]:
    """TCP ports that a stored template's init container connects to: 443, and those of the addresses it was given."""
    found = {443}
    for container in template["spec"].get("initContainers", []):
        texts = [*container.get("args", []), *(variable.get("value", "") for variable in container.get("env", []))]
        found.update(port for text in texts for port in _port_of(text))
    return sorted(found)


def fetches(template: Manifest) -> bool:
    """Whether pods of a stored template fetch their model."""
    return any(container["name"] == CONTAINER for container in template["spec"].get("initContainers", []))


def _port_of(text: str) -> Iterator[int]:
    url = urlsplit(text)
    if url.scheme in _DEFAULT_PORTS and url.hostname:
        yield url.port or _DEFAULT_PORTS[url.scheme]


def _cache_volume(platform: Platform) -> Manifest:
    cache = platform.model_cache
    match cache.kind:
        case "PersistentVolumeClaim":
            return {"persistentVolumeClaim": {"claimName": cache.claim}}
        case "HostPath":
            # Not DirectoryOrCreate: that would make a folder of root's, which the pods may not write to.
            return {"hostPath": {"path": cache.host_path, "type": "Directory"}}
        case "EmptyDir":
            return {"emptyDir": {"sizeLimit": cache.size}}


def _args(service: InferenceService, platform: Platform) -> list[str]:
    model, cache = service.spec.model, platform.model_cache
    args = ["--uri", parts.literal(model.uri), "--dest", parts.literal(model_dir(service, platform))]
    if model.revision:
        args += ["--revision", parts.literal(model.revision)]
    scheme = parse_model_uri(model.uri).scheme
    if scheme == "hf":
        args += ["--hf-endpoint", parts.literal(platform.hf_endpoint)]
    if scheme == "s3" and platform.s3_endpoint:
        args += ["--s3-endpoint", parts.literal(platform.s3_endpoint)]
    if cache.kind == "EmptyDir":
        # The disk looks larger than the emptyDir may become, and a pod beyond the limit is evicted.
        args += ["--max-bytes", _bytes(cache.size)]
    elif cache.max_size:
        args += ["--cache-bytes", _bytes(cache.max_size)]
    if platform.ca_config_map:
        args += ["--ca-file", f"{CA_PATH}/{CA_KEY}"]
    return [*args, "--progress-host", platform.bind_host, "--progress-port", str(names.PORT_FETCH)]


def _bytes(quantity: str) -> str:
    return str(int(quantity_value(quantity).to_integral_value(ROUND_CEILING)))


def _env(service: InferenceService, platform: Platform) -> list[Manifest]:
    secret = service.spec.model.secret_ref
    keys = _SECRET_KEYS[parse_model_uri(service.spec.model.uri).scheme] if secret else ()
    return [
        parts.field(names.ENV_POD_NAME, "metadata.name"),
        parts.field("POD_UID", "metadata.uid"),
        parts.value("TMPDIR", parts.TMP_PATH),
        *(parts.value(name, parts.literal(text)) for name, text in sorted(platform.proxy_env.items())),
        *(parts.secret_value(key, secret.name) for key in keys if secret),
    ]
