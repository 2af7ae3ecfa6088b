"""Pods that only fresh ones can take the place of, and how their Deployments are told so. Pure.

    sleeps and does not wake    its worker was told to, again and again (`sleeper`)
    has no model                it was deleted from the cache of models between two starts of the worker, and only a new pod fetches

The operator deletes no pod: it asks for one less until the lost one is gone. This module must not know how pods are marked.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from quire_contract import names
from quire_operator import pod_state
from quire_operator.manifests import worker
from quire_operator.manifests.parts import Manifest

_NO_MODEL = "its model was deleted from the cache of models after it was fetched"


def lost_pods(pods: Iterable[Manifest]) -> dict[str, str]:
    """By name, and why. Who serves after all is not lost."""
    candidates = (pod for pod in pods if pod_state.is_alive(pod) and not pod_state.is_ready(pod))
    return {_name(pod): why for pod in candidates if (why := _why(pod))}


def without_lost(replicas: Mapping[str, int], pods: Sequence[Manifest], lost: Collection[str]) -> dict[str, int]:
    """What the Deployments are told while lost pods are there: a place less for each, and none for pods that are not made yet. A ReplicaSet
    takes away first what is not ready, and of that what costs least; once the lost are gone, their places are asked for again."""
    alive = Counter(pod_state.revision(pod) for pod in pods if pod_state.is_alive(pod))
    gone = Counter(pod_state.revision(pod) for pod in pods if _name(pod) in lost)
    return {
        revision: max(0, min(count, alive[revision]) - gone[revision]) if gone[revision] else count
        for revision, count in replicas.items()
    }


def _why(pod: Manifest) -> str | None:
    lost = pod_state.why_lost(pod)
    if lost is not None:
        return f"it sleeps and does not wake, {lost}"
    main = next((entry for entry in pod_state.containers(pod) if entry.name == worker.CONTAINER), None)
    if main is None or main.running_since is not None or main.last_end is None:
        return None
    return _NO_MODEL if main.last_end.exit_code == names.EXIT_MODEL_GONE else None


def _name(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])
