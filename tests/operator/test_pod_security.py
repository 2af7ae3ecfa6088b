"""Every pod that we render passes the restricted Pod Security profile; a hostPath cache is the one exception, by an explicit value."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from quire_operator.api.validation import parse_service
from quire_operator.desired_state import desired_state, router_state
from quire_operator.platform import ModelCache, Platform, SpotPool
from quire_operator.revisions import current_revision
from tests.operator.pod_security import violations

Make = Callable[..., dict[str, Any]]
Manifest = dict[str, Any]

SPECS = {
    "claim": "",
    "image": "model: {uri: 'file:models/demo'}",
    "hub": "model: {uri: 'hf://a/b', secretRef: {name: hub}}",
    "s3": "model: {uri: 's3://bucket/x', secretRef: {name: s3}}",
    "web": "model: {uri: 'https://host/x.tar'}",
    "gpu": "{accelerator: {type: Nvidia, count: 1}, placement: {spot: Prefer}, podTemplate: {runtimeClassName: nvidia,"
    " env: [{name: A, value: b}], annotations: {note: x}, imagePullSecrets: [{name: r}]}}",
}
CACHES = {
    "emptyDir": ModelCache(),
    "claim": ModelCache(kind="PersistentVolumeClaim"),
    "hostPath": ModelCache(kind="HostPath", host_path="/var/lib/quire"),
}
CASES = [(spec, cache) for spec in SPECS for cache in CACHES]


def templates(document: dict[str, Any], cache: ModelCache) -> list[Manifest]:
    """Every pod template of a service and of the routers."""
    platform = Platform(
        namespace="serving", model_cache=cache, spot=SpotPool(label_key="spot", label_value="true"),
        ca_config_map="ca", proxy_env={"HTTPS_PROXY": "http://proxy:3128"}, image_pull_secrets=("mirror",),
    )  # fmt: skip
    service = parse_service(document)
    manifests = desired_state(service, [current_revision(service, platform)], platform)
    manifests += router_state([service], platform)
    return [manifest["spec"]["template"] for manifest in manifests if manifest["kind"] == "Deployment"]


@pytest.mark.parametrize(("spec", "cache"), CASES)
def test_every_pod_passes_but_one_with_a_host_path_by_choice(document: Make, spec: str, cache: str) -> None:
    worker, router = templates(document(SPECS[spec]), CACHES[cache])

    uses_host_path = cache == "hostPath" and spec in {"hub", "s3", "web"}
    allowed = ["volumes[model]: hostPath is not one of"] if uses_host_path else []
    assert [text.partition(" one of")[0] + " one of" for text in violations(worker)] == allowed
    assert violations(router) == []


@pytest.mark.parametrize(("spec", "cache"), CASES)
def test_pods_are_stricter_than_the_profile_where_it_costs_nothing(document: Make, spec: str, cache: str) -> None:
    for template in templates(document(SPECS[spec]), CACHES[cache]):
        pod = template["spec"]

        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


BREAKS: list[tuple[str, Any]] = [
    ("hostNetwork", True),
    ("hostPID", True),
    ("hostIPC", True),
    ("volumes", [{"name": "x", "hostPath": {"path": "/"}}]),
    ("volumes", [{"name": "x", "nfs": {"server": "s", "path": "/"}}]),
    ("volumes", [{"name": "x"}]),
    ("securityContext.runAsNonRoot", False),
    ("securityContext.runAsNonRoot", None),
    ("securityContext.runAsUser", 0),
    ("securityContext.seccompProfile", {"type": "Unconfined"}),
    ("securityContext.seccompProfile", None),
    ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("securityContext.seLinuxOptions", {"type": "spc_t"}),
    ("securityContext.seLinuxOptions", {"user": "system_u"}),
    ("securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("securityContext.windowsOptions", {"hostProcess": True}),
    ("containers.0.securityContext", None),
    ("containers.0.securityContext.privileged", True),
    ("containers.0.securityContext.allowPrivilegeEscalation", True),
    ("containers.0.securityContext.allowPrivilegeEscalation", None),
    ("containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}),
    ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    ("containers.0.securityContext.procMount", "Unmasked"),
    ("containers.0.securityContext.runAsUser", 0),
    ("containers.0.securityContext.runAsNonRoot", False),
    ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
    ("containers.0.securityContext.seLinuxOptions", {"role": "x"}),
    ("containers.0.securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("containers.0.ports", [{"containerPort": 80, "hostPort": 80}]),
    ("containers.0.livenessProbe", {"httpGet": {"host": "10.0.0.1", "port": 80}}),
    ("containers.0.lifecycle", {"preStop": {"httpGet": {"host": "10.0.0.1", "port": 80}}}),
    ("initContainers.0.securityContext.privileged", True),
    ("initContainers.0.securityContext.capabilities", None),
]


@pytest.mark.parametrize(("path", "value"), BREAKS, ids=[f"{path}={value}" for path, value in BREAKS])
def test_the_checker_finds_each_kind_of_violation(document: Make, path: str, value: Any) -> None:
    template = copy.deepcopy(templates(document(SPECS["hub"]), ModelCache())[0])
    assert violations(template) == []
    *parents, last = path.split(".")
    node: Any = template["spec"]
    for part in parents:
        node = node[int(part)] if part.isdecimal() else node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value

    assert violations(template) != []


def test_the_checker_finds_an_apparmor_annotation(document: Make) -> None:
    template = copy.deepcopy(templates(document(), ModelCache())[0])
    template["metadata"]["annotations"]["container.apparmor.security.beta.kubernetes.io/worker"] = "unconfined"

    assert len(violations(template)) == 1
