"""Reads a live pod: whether it counts, whether it serves, what its containers do. This module must not know what a service makes of it."""

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from quire_contract import names
from quire_operator.manifests.parts import Manifest
from quire_operator.timestamps import parse_time

ANNOTATION_LEAVING = "quire.dev/leaving"
"""On a worker's pod: since when and why it drains, so that whoever leads next goes on with it or takes it back."""
ANNOTATION_STANDBY = "quire.dev/standby"
"""On a worker's pod: what it was last meant to be, STANDBY_ASLEEP, or STANDBY_WOKEN with a blank and the time; or STANDBY_LOST with a
blank and why."""
STANDBY_ASLEEP = "asleep"
STANDBY_WOKEN = "woken"
STANDBY_LOST = "lost"


@dataclass(frozen=True)
class Termination:
    """How a container's process ended."""

    raw: Manifest
    """ContainerStateTerminated."""

    @property
    def reason(self) -> str:
        """Kubernetes' word, such as OOMKilled, Error, Completed."""
        return str(self.raw.get("reason", ""))

    @property
    def exit_code(self) -> int:
        """0 is well."""
        return int(self.raw.get("exitCode", 0))

    @property
    def at(self) -> datetime | None:
        """When it ended."""
        return parse_time(self.raw.get("finishedAt"))

    @property
    def last_line(self) -> str:
        """The last line that the process left, cut to 500 characters."""
        lines = str(self.raw.get("message", "")).strip().splitlines()
        return lines[-1].strip()[:500] if lines else ""

    @property
    def json_reason(self) -> str:
        """`reason` of a termination message that is {"reason": ..., "message": ...}; "" otherwise."""
        return self._told.get("reason", "")

    @property
    def json_message(self) -> str:
        """Its `message`."""
        return self._told.get("message", "")

    def json_told(self, key: str) -> str:
        """Any other of its entries, as text; "" if it has none."""
        return self._told.get(key, "")

    @cached_property
    def _told(self) -> dict[str, str]:
        try:
            told = json.loads(str(self.raw.get("message", "")))
        except ValueError:
            return {}
        return {key: str(value) for key, value in told.items()} if isinstance(told, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Container:
    """The status of one container of a pod."""

    name: str
    image: str
    """As the pod's spec has it."""
    restarts: int
    waiting: str
    """Why it does not run; "" if it runs or ran."""
    waiting_message: str
    running_since: datetime | None
    """None if it does not run."""
    last_end: Termination | None
    """How it ended, or how the run before this one did; None if none has ended."""


def containers(pod: Manifest) -> list[Container]:
    """Init containers first, in the pod's order; only those that the kubelet has reported."""
    status, images = pod.get("status", {}), _images(pod)
    reported = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    return [_container(entry, images) for entry in reported]


def is_terminating(pod: Manifest) -> bool:
    """Told to end."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_finished(pod: Manifest) -> bool:
    """Ended for good; it will not be restarted and counts for nothing."""
    return pod.get("status", {}).get("phase") in {"Failed", "Succeeded"}


def is_running(pod: Manifest) -> bool:
    """Its processes run: of a router that has crashed nothing can be asked, and nothing waits in it."""
    if pod.get("status", {}).get("phase") != "Running":
        return False
    reported = containers(pod)
    return not reported or any(entry.running_since for entry in reported)


def is_victim(pod: Manifest) -> bool:
    """Chosen to go: it drains, and takes no new requests."""
    return ANNOTATION_LEAVING in (pod["metadata"].get("annotations") or {})


def is_alive(pod: Manifest) -> bool:
    """A pod that serves or may come to."""
    return not is_terminating(pod) and not is_finished(pod)


def is_ready(pod: Manifest) -> bool:
    """Alive and serving."""
    ready = condition(pod, "Ready")
    return is_alive(pod) and ready is not None and ready.get("status") == "True"


def is_meant_to_sleep(pod: Manifest) -> bool:
    """Its worker was put to sleep, or is about to be."""
    return _standby(pod) == STANDBY_ASLEEP


def woken_at(pod: Manifest) -> datetime | None:
    """When it was woken, if that is what was done with it last."""
    word, _, time = _standby(pod).partition(" ")
    return parse_time(time) if word == STANDBY_WOKEN else None


def why_lost(pod: Manifest) -> str | None:
    """Why it was given up as a sleeper that does not wake; None: it was not."""
    word, _, why = _standby(pod).partition(" ")
    return why or "it does not wake" if word == STANDBY_LOST else None


def is_asleep(pod: Manifest) -> bool:
    """A warm standby: alive, its processes run, and it takes no requests, as it was meant to."""
    status = pod.get("status", {})
    runs = any((entry.get("state") or {}).get("running") for entry in status.get("containerStatuses") or ())
    return is_alive(pod) and is_meant_to_sleep(pod) and not is_ready(pod) and runs


def _standby(pod: Manifest) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(ANNOTATION_STANDBY, ""))


def revision(pod: Manifest) -> str:
    """The revision's digest; "" without the label."""
    return str(pod["metadata"].get("labels", {}).get(names.LABEL_REVISION, ""))


def serves(pod: Manifest, name: str) -> bool:
    """Whether the pod was started to serve `name`."""
    return json.dumps(name) in pod["metadata"].get("annotations", {}).get(names.ANNOTATION_SERVED_NAMES, "")


def condition(manifest: Manifest, kind: str) -> Manifest | None:
    """One of status.conditions."""
    entries: list[Manifest] = manifest.get("status", {}).get("conditions") or []
    return next((entry for entry in entries if entry.get("type") == kind), None)


def condition_time(manifest: Manifest, kind: str) -> datetime | None:
    """When that condition last changed."""
    found = condition(manifest, kind)
    return parse_time(found.get("lastTransitionTime")) if found else None


def creation_time(manifest: Manifest) -> datetime | None:
    """When it was made."""
    return parse_time(manifest["metadata"].get("creationTimestamp"))


def deletion_time(pod: Manifest) -> datetime | None:
    """When it should be gone: the API server adds the grace period."""
    return parse_time(pod["metadata"].get("deletionTimestamp"))


def _images(pod: Manifest) -> dict[str, str]:
    spec = pod.get("spec", {})
    listed: list[dict[str, Any]] = [*spec.get("initContainers", ()), *spec.get("containers", ())]
    return {entry["name"]: entry.get("image", "") for entry in listed}


def _container(entry: Manifest, images: dict[str, str]) -> Container:
    state, last = entry.get("state") or {}, entry.get("lastState") or {}
    waiting, running = state.get("waiting") or {}, state.get("running") or {}
    ended = state.get("terminated") or last.get("terminated")
    return Container(
        name=entry["name"],
        image=images.get(entry["name"]) or entry.get("image", ""),
        restarts=int(entry.get("restartCount", 0)),
        waiting=str(waiting.get("reason", "")),
        waiting_message=str(waiting.get("message", "")),
        running_since=parse_time(running.get("startedAt")),
        last_end=Termination(ended) if ended else None,
    )
