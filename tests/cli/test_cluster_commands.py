"""`quire status`, `rollback`, `pause` and `resume` against a real API server, with objects as the operator would have written them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.processes import wait_for
from cluster.tools import Command

from quire_cli.app import run_command
from quire_cli.cluster.found import FoundService
from quire_cli.cluster.pods import pod_state
from quire_cli.cluster.rollback import plan_rollback
from quire_cli.cluster.status import details
from quire_cli.errors import CommandError
from quire_cli.host import Host
from quire_operator.api.validation import parse_service
from quire_operator.platform import Platform
from quire_operator.revisions import controller_revision, wanted_revision

NOW = "2026-01-02T03:04:05Z"
Quire = Callable[..., tuple[int, str, str]]
FIRST = {"model": {"uri": "hf://a/b", "name": "m"}, "engine": {"maxNumSeqs": 32}}
SECOND = {"model": {"uri": "hf://a/b", "name": "m", "maxModelLen": 4096}, "resources": {"limits": {"memory": "9Gi"}}}


def ready(status: str = "True", reason: str = "Serving", message: str = "all replicas serve") -> list[dict[str, Any]]:
    """The Ready and Accepted conditions."""
    return [
        {"type": kind, "status": value, "reason": why, "message": text, "lastTransitionTime": NOW}
        for kind, value, why, text in (("Ready", status, reason, message), ("Accepted", "True", "Accepted", "valid"))
    ]


class World:
    """Makes objects in one namespace."""

    def __init__(self, kubectl: Command, namespace: str) -> None:
        self._kubectl = kubectl
        self.namespace = namespace

    def apply(self, document: dict[str, Any], *flags: str) -> dict[str, Any]:
        text = json.dumps(document)
        made = self._kubectl(
            "create", "--validate=false", "-n", self.namespace, "-o", "json", "-f", "-", *flags, stdin=text
        )
        found: dict[str, Any] = json.loads(made)
        return found

    def service(self, name: str = "demo", **spec: Any) -> dict[str, Any]:
        """An InferenceService."""
        document = {"apiVersion": "quire.dev/v1alpha1", "kind": "InferenceService", "metadata": {"name": name}}
        return self.apply({**document, "spec": {"replicas": 2, **(spec or SECOND)}})

    def status(self, name: str = "demo", **status: Any) -> None:
        """Writes a status about the service's present generation."""
        document = self.get(name)
        document["status"] = {"observedGeneration": document["metadata"]["generation"], "conditions": ready(), **status}
        path = f"/apis/quire.dev/v1alpha1/namespaces/{self.namespace}/inferenceservices/{name}/status"
        self._kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(document))

    def get(self, name: str = "demo") -> dict[str, Any]:
        found: dict[str, Any] = self._kubectl.json("get", "infsvc", name, "-n", self.namespace)
        return found

    def annotate(self, *arguments: str) -> None:
        self._kubectl("annotate", "infsvc", "demo", "-n", self.namespace, *arguments)

    def revision(
        self, owner: dict[str, Any], digest: str, number: int, shape: dict[str, Any], image: str = "w:1"
    ) -> None:
        """A stored revision of a service."""
        metadata = owner["metadata"]
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        self.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "ControllerRevision",
                "metadata": {"name": f"{metadata['name']}-{digest}", "ownerReferences": [reference]},
                "revision": number,
                "data": {"shape": shape, "image": image, "servedNames": ["m"], "template": {}},
            }
        )

    def pod(self, name: str, revision: str, **status: Any) -> dict[str, Any]:
        """A pod of the service `demo` in a state of our choice."""
        labels = {"quire.dev/service": "demo", "quire.dev/revision": revision}
        # No scheduler takes it, so nobody changes the status that we write.
        spec = {
            "schedulerName": "nobody",
            "automountServiceAccountToken": False,
            "containers": [{"name": "worker", "image": "w:1"}],
        }
        # Without its account a new namespace refuses pods.
        account = ("get", "serviceaccount", "default", "-n", self.namespace)
        wait_for(lambda: self._kubectl.run(*account).returncode == 0, 120.0, "the namespace's account")
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        made = self.apply(document)
        made["status"] = status
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/status"
        self._kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(made))
        return made

    def event(self, about: dict[str, Any], reason: str, message: str) -> None:
        """An Event."""
        metadata = about["metadata"]
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": "e-"},
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    "name": metadata["name"],
                    "namespace": self.namespace,
                    "uid": metadata["uid"],
                },
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": NOW,
            }
        )


@pytest.fixture
def world(kubectl: Command, install_crds: list[str], namespace: str) -> World:
    """An empty namespace of a cluster that has the CRDs."""
    return World(kubectl, namespace)


@pytest.fixture
def quire(control_plane: ControlPlane, world: World, capsys: pytest.CaptureFixture[str]) -> Quire:
    """Runs `quire ARGUMENTS -n NAMESPACE`: exit code, standard output, standard error."""

    def run(*arguments: str, namespace: str | None = None) -> tuple[int, str, str]:
        host = Host(environ={"KUBECONFIG": str(control_plane.kubeconfig)}, python=Path("python"))
        capsys.readouterr()
        code = run_command(host, [*arguments, "-n", namespace or world.namespace])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_status_of_ready_services_is_a_table_and_success(world: World, quire: Quire) -> None:
    world.service()
    world.status(readyReplicas=2, revision="aaaa", url="http://quire-router.quire.svc/v1", model="m")

    code, out, _ = quire("status")

    header, row = out.splitlines()
    assert code == 0
    assert header.split() == ["NAME", "READY", "REASON", "REPLICAS", "REVISION", "AGE", "URL"]
    assert row.split()[:5] == ["demo", "True", "Serving", "2/2", "aaaa"]
    assert row.endswith("http://quire-router.quire.svc/v1")


def test_status_of_a_canary_shows_the_split_and_the_step(world: World, quire: Quire) -> None:
    world.service(**SECOND, rollout={"canary": {"steps": [10, 50]}})
    world.status(
        readyReplicas=2,
        revision="bbbb",
        revisions=[{"name": "bbbb", "weight": 10}, {"name": "aaaa", "weight": 90}],
        rollout={"revision": "bbbb", "stable": "aaaa", "phase": "Canary", "step": 1, "weight": 10, "startedAt": NOW},
    )

    _, out, _ = quire("status")

    assert "bbbb:10% aaaa:90% (Canary step 1 of 2)" in out


def test_status_says_why_a_service_is_not_ready_and_fails(world: World, quire: Quire) -> None:
    world.service()
    world.status(conditions=ready("False", "Unschedulable", "0/3 nodes have 1 free nvidia.com/gpu"))

    code, out, _ = quire("status")

    assert code == 1
    assert "Unschedulable" in out
    assert "demo: 0/3 nodes have 1 free nvidia.com/gpu" in out


def test_status_of_a_service_that_shall_have_no_replicas_is_no_failure(world: World, quire: Quire) -> None:
    world.service(**SECOND, replicas=0)
    world.status(readyReplicas=0, conditions=ready("False", "ScaledToZero", "no replicas are wanted; kubectl scale"))

    code, table, _ = quire("status")
    code_of_one, one, _ = quire("status", "demo")

    assert (code, code_of_one) == (0, 0)
    assert len(table.splitlines()) == 2, "there is nothing to complain about"
    assert "demo: no replicas wanted (ScaledToZero)" in one


def test_status_of_a_service_that_serves_tells_of_a_change_that_is_stuck(world: World, quire: Quire) -> None:
    world.service()
    stuck = {
        **ready()[0],
        "type": "Progressing",
        "status": "False",
        "reason": "OOMKilled",
        "message": "raise the limit",
    }
    world.status(conditions=[*ready(), stuck])

    code, table, _ = quire("status")
    _, one, _ = quire("status", "demo")

    assert code == 0, "requests are answered"
    assert "demo: raise the limit" in table
    assert one.endswith("What to do\n  - raise the limit\n")


def test_status_of_a_spec_that_nobody_has_looked_at_says_so(world: World, quire: Quire) -> None:
    world.service()

    code, out, _ = quire("status", "demo")

    assert code == 1
    assert "the operator has not looked at the spec as it stands: is it running" in out


def test_status_of_one_service_shows_all_that_belongs_to_it_and_what_to_do(world: World, quire: Quire) -> None:
    service = world.service()
    world.status(conditions=ready("False", "OOMKilled", "worker used more than its limit"), revision="bbbb")
    world.revision(service, "aaaa", 1, FIRST)
    world.revision(service, "bbbb", 2, SECOND, image="w:2")
    ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": NOW, "startedAt": NOW}
    pod = world.pod(
        "demo-worker-bbbb-x",
        "bbbb",
        phase="Running",
        containerStatuses=[
            {
                "name": "worker", "image": "w:2", "imageID": "", "ready": False, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                "lastState": {"terminated": ended},
            }
        ],
    )  # fmt: skip
    world.event(pod, "BackOff", "Back-off restarting\nfailed container \x1b[31mred")
    world.event({**service, "metadata": {**service["metadata"], "uid": "of-another-life"}}, "Old", "not ours")

    code, out, _ = quire("status", "demo")

    assert code == 1
    assert f"{world.namespace}/demo: NOT READY (OOMKilled)" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["2", "bbbb", "0%", "0/0", rows[[r[:2] for r in rows].index(["2", "bbbb"])][4], "w:2", "wanted"] in rows
    assert "demo-worker-bbbb-x   bbbb       CrashLoopBackOff   3" in out
    assert "worker: OOMKilled (exit code 137)" in out
    assert "Back-off restarting failed container ?[31mred" in out
    assert "not ours" not in out
    assert "  - worker used more than its limit\n" in out
    assert "  - demo-worker-bbbb-x: the container needs more memory than its limit: raise" in out
    assert f"kubectl logs -n {world.namespace} demo-worker-bbbb-x -c worker --previous --tail 20" in out


def test_status_tells_how_the_replica_that_became_ready_last_started(world: World, quire: Quire) -> None:
    world.service()
    phases = [{"name": "Fetch", "milliseconds": 7100}, {"name": "Engine", "milliseconds": 450}]
    start = {"pod": "demo-x", "kind": "Cold", "totalMilliseconds": 12_340, "phases": phases, "time": NOW}
    world.status(lastStart=start)

    _, out, _ = quire("status", "demo")

    assert "Start:     12.3 s, cold (Fetch 7.1, Engine 0.5): demo-x\n" in out


def test_status_tells_why_it_scaled_that_way(world: World, quire: Quire) -> None:
    world.service(model=SECOND["model"], scaling={"minReplicas": 0, "maxReplicas": 8})
    reason = "AboveTarget: demand 41 at 16 a replica asks for 3 replicas"
    history = [
        {"time": NOW, "replicas": 3, "reason": reason},
        {"time": NOW, "replicas": 1, "reason": "Activated: demand 1 is above 0; starts 1 replica"},
    ]
    scaling = {"provider": "BuiltIn", "desired": 3, "demand": 41, "lastReason": reason, "history": history}
    world.status(scaling=scaling)

    _, out, _ = quire("status", "demo")

    assert f"Scaling:   0 to 8, 3 wanted at demand 41, by BuiltIn ({reason})\n" in out
    changes = out.split("Last changes of replicas\n")[1].splitlines()
    assert changes[0].split() == ["AGE", "REPLICAS", "REASON"]
    assert [line.split(maxsplit=2)[1:] for line in changes[1:3]] == [["3", reason], ["1", history[1]["reason"]]]


def test_status_of_a_service_that_scales_and_was_not_looked_at_says_so(world: World, quire: Quire) -> None:
    world.service(model=SECOND["model"], scaling={"maxReplicas": 8})
    world.status()

    _, out, _ = quire("status", "demo")

    assert "Scaling:   1 to 8; nobody has decided yet\n" in out
    assert "Last changes" not in out


def test_a_pod_that_is_meant_to_sleep_and_does_is_called_asleep() -> None:
    conditions = [{"type": "Ready", "status": "False"}]
    running = [{"name": "worker", "state": {"running": {"startedAt": NOW}}}]
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": running}
    meta = {"name": "demo-x", "annotations": {"quire.dev/standby": "asleep"}}

    assert pod_state({"metadata": meta, "status": status}).word == "Asleep"
    assert pod_state({"metadata": {"name": "demo-x"}, "status": status}).word == "Loading"


def test_a_mistyped_name_is_answered_with_the_near_one(world: World, quire: Quire) -> None:
    world.service()

    code, _, err = quire("status", "dmeo")

    assert code == 1
    assert err == f"error: InferenceService dmeo is not in namespace {world.namespace}; did you mean demo?\n"


def test_rollback_puts_the_whole_shape_of_the_revision_before_back(world: World, quire: Quire) -> None:
    service = world.service(**SECOND, rollout={"strategy": "Recreate"})
    world.revision(service, "aaaa", 1, FIRST)
    world.revision(service, "bbbb", 2, SECOND)
    world.status(revision="bbbb")

    code, out, err = quire("rollback", "demo")

    spec = world.get()["spec"]
    assert (code, err) == (0, "")
    assert spec["engine"]["maxNumSeqs"] == 32
    assert "maxModelLen" not in spec["model"]
    assert "limits" not in spec.get("resources", {})
    assert "image" not in spec["engine"], "both revisions have the same image"
    assert (spec["replicas"], spec["rollout"]["strategy"]) == (2, "Recreate"), "what shapes no pods stays"
    assert out.splitlines()[0] == "demo goes back to revision 1 (aaaa):"
    assert "  engine.maxNumSeqs: (not set) -> 32\n  model.maxModelLen: 4096 -> (not set)\n" in out
    assert '  resources.limits.memory: "9Gi" -> (not set)\n' in out


def test_rollback_to_a_revision_with_another_image_names_that_image(world: World, quire: Quire) -> None:
    service = world.service()
    world.revision(service, "aaaa", 1, FIRST, image="w:1")
    world.revision(service, "bbbb", 2, FIRST, image="w:2")
    world.revision(service, "cccc", 3, SECOND, image="w:2")
    world.status(revision="cccc")

    code, out, _ = quire("rollback", "demo", "--to", "aaaa")

    assert code == 0
    assert world.get()["spec"]["engine"] | {"image": "w:1", "maxNumSeqs": 32} == world.get()["spec"]["engine"]
    assert '  engine.image: (not set) -> "w:1"\n' in out


def test_rollback_of_a_failed_canary_goes_to_the_revision_that_stayed(world: World, quire: Quire) -> None:
    service = world.service()
    world.revision(service, "aaaa", 1, FIRST)
    world.revision(service, "bbbb", 2, {**FIRST, "engine": {"maxNumSeqs": 48}})
    world.revision(service, "cccc", 3, SECOND)
    world.status(
        revision="cccc",
        revisions=[{"name": "cccc", "failed": True}, {"name": "bbbb", "failed": True}, {"name": "aaaa"}],
        rollout={"revision": "cccc", "stable": "aaaa", "phase": "Failed", "startedAt": NOW},
    )

    _, out, _ = quire("rollback", "demo")

    assert out.startswith("demo goes back to revision 1 (aaaa):")


def test_rollback_of_a_spec_that_never_became_a_revision_goes_to_the_newest(world: World, quire: Quire) -> None:
    service = world.service(**SECOND, accelerator={"type": "Nvidia", "count": 4})
    world.revision(service, "aaaa", 1, FIRST)
    world.revision(service, "bbbb", 2, SECOND)
    world.status(revision="bbbb", conditions=[{**ready()[1], "status": "False", "reason": "Invalid"}])

    _, out, _ = quire("rollback", "demo")

    assert out.startswith("demo goes back to revision 2 (bbbb):")
    assert "accelerator" not in world.get()["spec"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "demo has no earlier revision to go back to; there are: 1 (aaaa)"),
        (["--to", "9"], "--to 9: demo has no such revision; there are: 1 (aaaa)"),
        (["--to", "1"], "demo has the spec of revision aaaa already; there is nothing to change"),
    ],
)
def test_rollback_to_what_is_not_there_changes_nothing(
    world: World, quire: Quire, arguments: list[str], message: str
) -> None:
    service = world.service()
    world.revision(service, "aaaa", 1, SECOND)
    world.status(revision="aaaa")
    before = world.get()["metadata"]["resourceVersion"]

    code, _, err = quire("rollback", "demo", *arguments)

    assert code != 0
    assert err == f"error: {message}\n"
    assert world.get()["metadata"]["resourceVersion"] == before


def test_rollback_of_a_service_that_git_owns_is_refused_unless_forced(world: World, quire: Quire) -> None:
    service = world.service()
    world.annotate("argocd.argoproj.io/tracking-id=x")
    world.revision(service, "aaaa", 1, FIRST)
    world.revision(service, "bbbb", 2, SECOND)
    world.status(revision="bbbb")

    refused, _, err = quire("rollback", "demo")
    forced, out, _ = quire("rollback", "demo", "--force")

    assert (refused, forced) == (1, 0)
    assert "kept as it is in Git by Argo CD, which would undo this" in err
    assert "Argo CD undoes this at its next sync" in out


def test_a_paused_service_says_so_until_it_is_resumed(world: World, quire: Quire) -> None:
    world.service()
    world.status()

    quire("pause", "demo")
    _, paused, _ = quire("status")
    quire("resume", "demo")
    _, resumed, _ = quire("status")

    assert "Serving (paused)" in paused
    assert "paused" not in resumed
    assert "quire.dev/paused" not in world.get()["metadata"].get("annotations", {})


def test_status_in_all_namespaces_and_a_name_contradict_each_other(quire: Quire) -> None:
    code, _, err = quire("status", "demo", "-A")

    assert code == 2
    assert "-A shows every service" in err


@pytest.mark.parametrize(
    ("kubeconfig", "said"),
    [
        (None, "there is no such kubeconfig; name one with --kubeconfig or KUBECONFIG"),
        ("{}", "contexts has no None; set current-context with kubectl config use-context"),
        (
            json.dumps(
                {
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                }
            ),
            "http://127.0.0.1:1: the API server cannot be reached",
        ),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kubeconfig: str | None, said: str
) -> None:
    if kubeconfig is not None:
        (tmp_path / ".kube").mkdir()
        (tmp_path / ".kube" / "config").write_text(kubeconfig)

    code = run_command(Host(environ={"HOME": str(tmp_path)}, python=Path("python")), ["status"])

    assert code != 0
    assert said in capsys.readouterr().err


def test_what_may_not_be_read_does_not_hide_the_rest() -> None:
    document = {
        "metadata": {"name": "demo", "namespace": "llm", "generation": 1, "creationTimestamp": NOW},
        "spec": {"replicas": 1, "model": {"uri": "hf://a/b"}},
        "status": {"observedGeneration": 1, "conditions": ready(), "readyReplicas": 1, "revision": "aaaa"},
    }
    found = FoundService(document=document, revisions=None, pods=None, events=None)

    lines = details(found, datetime(2026, 1, 2, 6, 4, 5, tzinfo=UTC))

    assert lines[:2] == ["Service:   llm/demo: ready (Serving)", "Model:     - from hf://a/b"]
    assert "Age:       3h" in lines
    assert lines.count("  (no permission to list them)") == 3
    assert "What to do" not in lines


def test_after_a_rollback_the_operator_finds_the_stored_revision_again() -> None:
    """Also where the release's default image has changed since: its pods are not restarted."""
    older = Platform(worker_image="w:1")
    newer = Platform(worker_image="w:2")
    document = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "demo", "namespace": "llm", "uid": "u"},
    }
    first, second = ({**document, "spec": {"replicas": 2, **shape}} for shape in (FIRST, SECOND))
    before = wanted_revision(parse_service(first), [], older)
    after = wanted_revision(parse_service(second), [before], newer)
    stored = [controller_revision(parse_service(second), revision) for revision in (after, before)]

    plan = plan_rollback(second, stored, None)

    found = wanted_revision(parse_service(plan.document), [after, before], newer)
    assert (found.name, found.template) == (before.name, before.template)
    assert found.number > after.number
    assert plan.revision == before.name


def test_a_revision_that_holds_no_spec_is_not_written_back() -> None:
    document = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "demo", "namespace": "llm", "uid": "u"},
        "spec": SECOND,
    }
    lost = {"metadata": {"name": "demo-aaaa"}, "revision": 1, "data": {"shape": {}, "image": "w:1"}}

    with pytest.raises(CommandError, match="revision aaaa of demo holds no spec to go back to"):
        plan_rollback(document, [lost], "aaaa")
