"""The restricted Pod Security profile, field by field, as a list of what a pod spec breaks.

From https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline and restricted, Linux pods), written anew here so
that the manifests are held against the standard and not against themselves.
"""

from collections.abc import Iterator
from typing import Any

PodSpec = dict[str, Any]

VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
APPARMOR_TYPES = {"RuntimeDefault", "Localhost"}
SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


def violations(template: dict[str, Any]) -> list[str]:
    """What a pod template (metadata, spec) breaks, as "path: why"; empty for a pod that the profile admits."""
    pod: PodSpec = template["spec"]
    annotations = template.get("metadata", {}).get("annotations", {})
    return [
        *_of_pod(pod),
        *_of_annotations(annotations),
        *(text for one in _containers(pod) for text in _of_container(pod, *one)),
    ]


def _containers(pod: PodSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in CONTAINER_LISTS:
        for container in pod.get(kind, []):
            yield f"{kind}[{container['name']}]", container


def _of_pod(pod: PodSpec) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field}: must be false"
    if pod.get("hostUsers") is True:
        yield "hostUsers: asked for"
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUME_TYPES:
            yield f"volumes[{volume['name']}]: {', '.join(sorted(kinds))} is not one of {', '.join(sorted(VOLUME_TYPES))}"
    security = pod.get("securityContext", {})
    for sysctl in security.get("sysctls", []):
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"securityContext.sysctls: {sysctl['name']} is not safe"
    yield from _of_shared("securityContext", security)
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield "securityContext.windowsOptions.hostProcess: must be false"


def _of_shared(path: str, security: dict[str, Any]) -> Iterator[str]:
    """Fields that pods and containers have alike; absent ones are judged where both are known."""
    if security.get("runAsUser") == 0:
        yield f"{path}.runAsUser: must not be 0"
    if security.get("runAsNonRoot") is False:
        yield f"{path}.runAsNonRoot: must not be false"
    selinux = security.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{path}.seLinuxOptions: type, user or role is not allowed"
    seccomp = security.get("seccompProfile")
    if seccomp is not None and seccomp.get("type") not in SECCOMP_TYPES:
        yield f"{path}.seccompProfile: {seccomp.get('type')} is not allowed"
    apparmor = security.get("appArmorProfile")
    if apparmor is not None and apparmor.get("type") not in APPARMOR_TYPES:
        yield f"{path}.appArmorProfile: {apparmor.get('type')} is not allowed"


def _of_container(pod: PodSpec, path: str, container: dict[str, Any]) -> Iterator[str]:
    of_pod, security = pod.get("securityContext", {}), container.get("securityContext", {})
    path = f"{path}.securityContext"
    yield from _of_shared(path, security)
    if security.get("privileged"):
        yield f"{path}.privileged: must be false"
    if security.get("allowPrivilegeEscalation") is not False:
        yield f"{path}.allowPrivilegeEscalation: must be false"
    capabilities = security.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{path}.capabilities.drop: must have ALL"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{path}.capabilities.add: only NET_BIND_SERVICE may be added"
    if security.get("procMount", "Default") != "Default":
        yield f"{path}.procMount: must be Default"
    if security.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield f"{path}.runAsNonRoot: must be true, here or for the pod"
    if (security.get("seccompProfile") or of_pod.get("seccompProfile") or {}).get("type") not in SECCOMP_TYPES:
        yield f"{path}.seccompProfile: must be RuntimeDefault or Localhost, here or for the pod"
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess: must be false"
    for port in container.get("ports", []):
        if port.get("hostPort"):
            yield f"{path.removesuffix('.securityContext')}.ports: hostPort is not allowed"
    for name, probe in _handlers(container):
        if any(handler.get("host") for handler in probe.values() if isinstance(handler, dict)):
            yield f"{path.removesuffix('.securityContext')}.{name}: a host must not be named"


def _handlers(container: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Probes and lifecycle hooks: since Kubernetes 1.34 the baseline forbids their `host`."""
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            yield name, container[name]
    for name, hook in container.get("lifecycle", {}).items():
        yield f"lifecycle.{name}", hook


def _of_annotations(annotations: dict[str, str]) -> Iterator[str]:
    for name, profile in annotations.items():
        if name.startswith(APPARMOR_ANNOTATION) and not profile.startswith(("runtime/default", "localhost/")):
            yield f"annotations[{name}]: {profile} is not allowed"
