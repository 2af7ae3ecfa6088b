"""What to do about a service that is not ready: the operator's words, and what its pods show even if no operator runs.

Pure; this module must not know requests.
"""

from collections.abc import Iterator, Sequence

from quire_cli.cluster.found import FoundService, condition, is_paused, is_seen
from quire_cli.cluster.pods import PodState

_BY_REASON = {
    "Unschedulable": "no node has room for a pod: add nodes, free resources, or lower spec.resources or spec.accelerator; "
    "check spec.placement if the nodes are tainted or labelled",
    "ImagePullBackOff": "the image cannot be pulled: check its name, that it exists for this node's architecture, and imagePullSecrets",
    "ErrImagePull": "the image cannot be pulled: check its name, that it exists for this node's architecture, and imagePullSecrets",
    "InvalidImageName": "the image's name is not valid: correct spec.engine.image or the chart's image values",
    "CreateContainerConfigError": "a Secret or ConfigMap that the pod names is missing: create it, or correct the name",
    "CreateContainerError": "the node cannot make the container; the pod's message says why",
    "OOMKilled": "the container needs more memory than its limit: raise spec.resources.limits.memory, "
    "or lower spec.engine.kvCacheMemory",
    "ExitCode2": "the worker says that the model or the configuration cannot work; the last line of its log names the cause and the fix",
    "CrashLoopBackOff": "the container ends again and again; its last log lines say why",
    "Evicted": "the node was short of memory or disk: raise spec.resources.requests, so that the pod gets a node with room",
    "DeadlineExceeded": "the pod took too long; its log says how far it came",
}


def advise(found: FoundService, pods: Sequence[PodState]) -> list[str]:
    """What to do, most important first, each thing once. Empty if all is well."""
    return list(dict.fromkeys(_advice(found, pods)))


def _advice(found: FoundService, pods: Sequence[PodState]) -> Iterator[str]:
    document = found.document
    name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
    if is_paused(document):
        yield f"it is paused, so nothing that its spec says is carried out; go on with: quire resume {name} -n {namespace}"
    elif not is_seen(document):
        yield (
            "the operator has not looked at the spec as it stands: is it running (kubectl get pods -A -l "
            "app.kubernetes.io/component=operator), and does it watch this namespace?"
        )
    ready, progressing = condition(document, "Ready"), condition(document, "Progressing")
    if ready.get("status") == "True":
        if progressing.get("status") == "False":
            yield progressing["message"]  # the old revision serves, the new one does not come up
        return
    if is_seen(document) and ready.get("message"):
        yield ready["message"]  # it ends with the fix
    for pod in pods:
        if pod.word == "Ready":
            continue
        fixes = [_BY_REASON[reason] for reason in (pod.last_reason, pod.word) if reason in _BY_REASON]
        yield from (f"{pod.name}: {fix}" for fix in fixes[:1])
        if pod.log:
            yield f"{pod.name}: read its last words: kubectl logs -n {namespace} {pod.log} --tail 20"
