"""The restricted profile of the Pod Security Standards, field by field (version 1.31)."""

from collections.abc import Iterator, Mapping
from typing import Any

ALLOWED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


def violations(pod: Mapping[str, Any]) -> list[str]:
    """What the profile refuses in a pod or pod template, and beyond it a root file system that can be written to."""
    spec = pod["spec"]
    return [*_of_annotations(pod), *_of_pod(spec), *_of_containers(spec)]


def _of_annotations(pod: Mapping[str, Any]) -> Iterator[str]:
    for key, value in pod.get("metadata", {}).get("annotations", {}).items():
        is_allowed = value in {"", "runtime/default"} or value.startswith("localhost/")
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and not is_allowed:
            yield f"annotation {key}={value}"


def _of_pod(spec: Mapping[str, Any]) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    context = spec.get("securityContext", {})
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_windows_and_selinux("pod", context)
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            yield f"volume {volume['name']}: {', '.join(sorted(kinds))}"


def _of_containers(spec: Mapping[str, Any]) -> Iterator[str]:
    pod = spec.get("securityContext", {})
    for container in (item for key in CONTAINER_LISTS for item in spec.get(key, [])):
        name, own = container["name"], container.get("securityContext", {})
        yield from (f"{name}: {problem}" for problem in _of_container(own, pod))
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield f"{name}: hostPort {port['hostPort']}"
        for handler in _handlers(container):
            if handler.get("host"):
                yield f"{name}: a probe or hook names the host {handler['host']}"


def _of_container(own: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser is 0"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities.drop has no ALL"
    if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield f"capabilities.add {capabilities['add']}"
    profile = own.get("seccompProfile", pod.get("seccompProfile", {}))
    if profile.get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "seccompProfile is not RuntimeDefault"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    apparmor = own.get("appArmorProfile", pod.get("appArmorProfile", {}))
    if apparmor.get("type", "RuntimeDefault") not in {"RuntimeDefault", "Localhost"}:
        yield "appArmorProfile"
    yield from _of_windows_and_selinux("container", own)
    if own.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem is not true"


def _of_windows_and_selinux(where: str, context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{where} hostProcess"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}:
        yield f"{where} seLinuxOptions.type"
    if selinux.get("user") or selinux.get("role"):
        yield f"{where} seLinuxOptions.user or role"


def _handlers(container: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    actions = [container.get(key, {}) for key in ("livenessProbe", "readinessProbe", "startupProbe")]
    actions += [container.get("lifecycle", {}).get(key, {}) for key in ("postStart", "preStop")]
    for action in actions:
        yield from (action[key] for key in ("httpGet", "tcpSocket") if key in action)
