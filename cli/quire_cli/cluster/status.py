"""`quire status`: a table of services, or all about one of them. Text only; this module must not change anything."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from quire_cli.cluster.advice import advise
from quire_cli.cluster.found import (
    FoundService,
    KubeObject,
    condition,
    event_time,
    find_service,
    is_paused,
    is_scaled_to_zero,
    is_seen,
    list_services,
)
from quire_cli.cluster.pods import PodState, pod_state
from quire_cli.cluster.table import age, aligned
from quire_contract import names
from quire_contract.kube.client import KubeClient

_UNREADABLE = "  (no permission to list them)"


async def status_of_all(client: KubeClient, namespace: str | None) -> tuple[list[str], bool]:
    """The table of a namespace's services, or of all; and whether every one is as it is wanted."""
    documents = await list_services(client, namespace)
    return summary(documents, datetime.now(UTC), namespace), all(map(is_well, documents))


async def status_of_one(client: KubeClient, namespace: str, name: str) -> tuple[list[str], bool]:
    """All about one service; and whether it is as it is wanted."""
    found = await find_service(client, namespace, name)
    return details(found, datetime.now(UTC)), is_well(found.document)


def is_ready(document: Mapping[str, Any]) -> bool:
    """Whether the operator says that the service, as its spec stands, is ready."""
    return condition(document, "Ready").get("status") == "True" and is_seen(document)


def is_well(document: Mapping[str, Any]) -> bool:
    """Whether it is ready, or has no replicas because none are wanted."""
    return is_ready(document) or is_scaled_to_zero(document)


def summary(documents: Sequence[KubeObject], now: datetime, namespace: str | None) -> list[str]:
    """The table. With no namespace, the services' namespaces are shown."""
    if not documents:
        where = "any namespace" if namespace is None else f"namespace {namespace}"
        return [f"no InferenceService in {where}"]
    titles = ["NAME", "READY", "REASON", "REPLICAS", "REVISION", "AGE", "URL"]
    rows = [_summary_row(document, now) for document in documents]
    if namespace is None:
        titles = ["NAMESPACE", *titles]
        rows = [[document["metadata"]["namespace"], *row] for document, row in zip(documents, rows, strict=True)]
    lines = aligned(titles, rows)
    for document in documents:
        if trouble := _trouble(document):
            metadata = document["metadata"]
            lines += ["", " ".join(f"{metadata['name']}: {trouble}".split())]
            lines += [f"  more: quire status {metadata['name']} -n {metadata['namespace']}"]
    return lines


def details(found: FoundService, now: datetime) -> list[str]:
    """Conditions, revisions, pods, events and what to do."""
    pods = [pod_state(pod) for pod in found.pods or ()]
    return [
        *_head(found.document, now),
        "",
        "Conditions",
        *_conditions(found.document, now),
        "",
        "Revisions",
        *_revisions(found, now),
        "",
        "Pods",
        *_pods(found, pods, now),
        *_scalings(found.document, now),
        "",
        "Events",
        *_events(found, now),
        *_to_do(found, pods),
    ]


def _summary_row(document: KubeObject, now: datetime) -> list[str]:
    status = document.get("status") or {}
    ready = condition(document, "Ready")
    reason = ready.get("reason", "-") if is_seen(document) else "NotSeenByOperator"
    return [
        document["metadata"]["name"],
        str(is_ready(document)) if is_seen(document) else "Unknown",
        f"{reason} (paused)" if is_paused(document) else reason,
        _replicas(document),
        _revision(document),
        age(document["metadata"].get("creationTimestamp"), now),
        status.get("url") or "-",
    ]


def _replicas(document: Mapping[str, Any]) -> str:
    """Ready of wanted, as kubectl shows Deployments."""
    wanted = document.get("spec", {}).get("replicas", 1)
    return f"{(document.get('status') or {}).get('readyReplicas') or 0}/{wanted}"


def _revision(document: Mapping[str, Any]) -> str:
    """The revision, or the shares of the traffic while there are several."""
    status = document.get("status") or {}
    shares = [f"{entry['name']}:{entry['weight']}%" for entry in status.get("revisions") or () if entry.get("weight")]
    text = " ".join(shares) if len(shares) > 1 else status.get("revision") or "-"
    step = _rollout(document)
    return f"{text} ({step})" if step else text


def _rollout(document: Mapping[str, Any]) -> str:
    """What the rollout does now, as "Canary step 2 of 3"; empty if there is none."""
    rollout = (document.get("status") or {}).get("rollout") or {}
    phase: str = rollout.get("phase") or ""
    if not rollout.get("step"):
        return phase
    canary = ((document.get("spec") or {}).get("rollout") or {}).get("canary") or {}
    of = f" of {len(canary['steps'])}" if canary.get("steps") else ""
    return f"{phase} step {rollout['step']}{of}"


def _fetch(document: Mapping[str, Any]) -> str:
    """How far the model's download is; empty if there is none."""
    fetch = (document.get("status") or {}).get("fetch") or {}
    done, total = fetch.get("doneBytes") or 0, fetch.get("totalBytes")
    if not fetch or fetch.get("phase") == "done":
        return ""
    return f"{fetch.get('phase')}, {_gigabytes(done)}{f' of {_gigabytes(total)}' if total else ''}"


def _last_start(document: Mapping[str, Any]) -> str:
    """How the replica that became ready last started, as "12.3 s, cold (Schedule 1.0, Fetch 7.1, ...): pod"; empty if none has."""
    start = (document.get("status") or {}).get("lastStart") or {}
    if not start:
        return ""
    phases = ", ".join(f"{one['name']} {one['milliseconds'] / 1000:.1f}" for one in start.get("phases") or ())
    parts = f" ({phases})" if phases else ""
    return f"{start['totalMilliseconds'] / 1000:.1f} s, {start['kind'].lower()}{parts}: {start['pod']}"


def _scaling(document: Mapping[str, Any]) -> str:
    """Bounds, number, demand and why, as "1 to 8, 3 wanted at demand 41, by BuiltIn (AboveTarget: ...)"; empty without spec.scaling."""
    spec = (document.get("spec") or {}).get("scaling") or {}
    if not spec:
        return ""
    bounds = f"{spec.get('minReplicas', 1)} to {spec.get('maxReplicas', '-')}"
    scaling = (document.get("status") or {}).get("scaling") or {}
    if not scaling:
        return f"{bounds}; nobody has decided yet"
    reason, standby = scaling.get("lastReason"), scaling.get("standby")
    asleep = f", {standby} asleep" if standby else ""
    wanted = f"{scaling.get('desired', 0)} wanted at demand {scaling.get('demand', 0)}{asleep}"
    return f"{bounds}, {wanted}, by {scaling.get('provider', '-')}{f' ({reason})' if reason else ''}"


def _scalings(document: Mapping[str, Any], now: datetime) -> list[str]:
    """The last changes of the number of replicas, newest first; nothing if there were none."""
    history = ((document.get("status") or {}).get("scaling") or {}).get("history") or ()
    if not history:
        return []
    rows = [
        [age(one.get("time"), now), str(one.get("replicas", "-")), " ".join(str(one.get("reason", "")).split())]
        for one in history
    ]
    return ["", "Last changes of replicas", *_indented(["AGE", "REPLICAS", "REASON"], rows)]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _trouble(document: Mapping[str, Any]) -> str:
    """What is wrong, and the fix; empty if all is well."""
    if not is_seen(document):
        return "the operator has not looked at the spec as it stands"
    ready, progressing = condition(document, "Ready"), condition(document, "Progressing")
    if ready.get("status") != "True" and not is_scaled_to_zero(document):
        return ready.get("message") or ready.get("reason") or "the operator has not said anything about it yet"
    return str(progressing["message"]) if progressing.get("status") == "False" else ""


def _head(document: KubeObject, now: datetime) -> list[str]:
    metadata, status = document["metadata"], document.get("status") or {}
    reason = condition(document, "Ready").get("reason")
    state = "ready" if is_ready(document) else "no replicas wanted" if is_scaled_to_zero(document) else "NOT READY"
    facts = [
        ("Service", f"{metadata['namespace']}/{metadata['name']}: {state}{f' ({reason})' if reason else ''}"),
        ("Paused", "yes" if is_paused(document) else ""),
        ("Model", f"{status.get('model') or '-'} from {document.get('spec', {}).get('model', {}).get('uri', '-')}"),
        ("URL", status.get("url") or "-"),
        ("Replicas", f"{_replicas(document)} ready"),
        ("Revision", _revision(document)),
        ("Rollout", (status.get("rollout") or {}).get("message", "")),
        ("Download", _fetch(document)),
        ("Start", _last_start(document)),
        ("Scaling", _scaling(document)),
        ("Age", age(metadata.get("creationTimestamp"), now)),
    ]
    return [f"{title + ':':<11}{text}" for title, text in facts if text]


def _conditions(document: KubeObject, now: datetime) -> list[str]:
    entries = (document.get("status") or {}).get("conditions") or ()
    if not entries:
        return ["  none: the operator has not looked at it yet"]
    rows = [
        [
            f"  {entry['type']}",
            entry["status"],
            entry.get("reason", ""),
            age(entry.get("lastTransitionTime"), now),
            entry.get("message", ""),
        ]
        for entry in entries
    ]
    return _indented(["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], rows)


def _revisions(found: FoundService, now: datetime) -> list[str]:
    if found.revisions is None:
        return [_UNREADABLE]
    if not found.revisions:
        return ["  none yet"]
    status, metadata = found.document.get("status") or {}, found.document["metadata"]
    shown = {entry["name"]: entry for entry in status.get("revisions") or ()}
    rows = []
    for item in found.revisions:
        name = item["metadata"]["name"].removeprefix(f"{metadata['name']}-")
        entry = shown.get(name, {})
        ready = f"{entry.get('readyReplicas') or 0}/{entry.get('replicas') or 0}"
        mark = "rolled back" if entry.get("failed") else "wanted" if name == status.get("revision") else ""
        image = item["data"].get("image", "-")
        made = age(item["metadata"].get("creationTimestamp"), now)
        rows.append([str(item["revision"]), name, f"{entry.get('weight', 0)}%", ready, made, image, mark])
    return _indented(["NUMBER", "NAME", "TRAFFIC", "READY", "AGE", "IMAGE", ""], rows)


def _pods(found: FoundService, pods: Sequence[PodState], now: datetime) -> list[str]:
    if found.pods is None:
        return [_UNREADABLE]
    if not pods:
        return ["  none"]
    rows = [
        [
            state.name,
            (pod["metadata"].get("labels") or {}).get(names.LABEL_REVISION, "-"),
            state.word,
            str(state.restarts),
            age(pod["metadata"].get("creationTimestamp"), now),
            (pod.get("spec") or {}).get("nodeName") or "-",
            state.last_end,
        ]
        for pod, state in zip(found.pods, pods, strict=True)
    ]
    lines = _indented(["NAME", "REVISION", "STATE", "RESTARTS", "AGE", "NODE", "LAST END"], rows)
    return lines + [f"  {state.name}: {' '.join(state.message.split())}" for state in pods if state.message]


def _events(found: FoundService, now: datetime) -> list[str]:
    if found.events is None:
        return [_UNREADABLE]
    if not found.events:
        return ["  none"]
    rows = [
        [
            age(event_time(event), now),
            event.get("type", ""),
            event.get("reason", ""),
            f"{event['involvedObject'].get('kind', '').lower()}/{event['involvedObject'].get('name', '')}",
            event.get("message", ""),
        ]
        for event in found.events
    ]
    return _indented(["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"], rows)


def _to_do(found: FoundService, pods: Sequence[PodState]) -> Iterator[str]:
    todo = advise(found, pods)
    if todo:
        yield from ("", "What to do", *(f"  - {line}" for line in todo))


def _indented(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}".rstrip() for line in aligned(titles, [[cell.strip() for cell in row] for row in rows])]
