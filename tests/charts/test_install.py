"""The charts on a real API server: installed, upgraded, uninstalled, and what their accounts may do there."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.processes import wait_for
from cluster.tools import Command, CommandError

from .chart import Chart
from .test_rbac import OPERATOR_IN_RELEASE, OPERATOR_IN_WATCHED, ROUTER_IN_RELEASE, ROUTER_IN_WATCHED, Table

SUPPORTED = (1, 29)
Can = Callable[[str, str, str, str], bool]


@pytest.fixture
def helm_flags(control_plane: ControlPlane) -> list[str | Path]:
    """An old server knows fewer fields than the charts have, and drops them; a current one is given no flags."""
    return [] if control_plane.version >= SUPPORTED else ["--server-side=false", "--disable-openapi-validation"]


@pytest.fixture
def team(kubectl: Command) -> Iterator[str]:
    """A second namespace."""
    name = f"team-{secrets.token_hex(5)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def installed(
    helm: Command,
    kubectl: Command,
    chart: Chart,
    namespace: str,
    team: str,
    helm_flags: list[str | Path],
    tmp_path: Path,
) -> Iterator[Path]:
    """The chart in `namespace`, watching `team` too; the file with its values."""
    values = tmp_path / "values.yaml"
    values.write_text(f"allowUnsupportedKubernetes: true\nwatchNamespaces: [{team}]\nredis: {{mode: bundled}}\n")
    helm("install", "quire", chart.folder, "-n", namespace, "-f", values, *helm_flags)

    def is_granted(account: str, resource: str, where: str) -> bool:
        subject = f"--as=system:serviceaccount:{namespace}:quire-{account}"
        return kubectl.run("auth", "can-i", "list", resource, "-n", where, subject).returncode == 0

    for account in ("operator", "router"):  # a server acts on new rights a moment after it has taken them
        for resource, where in (("configmaps", namespace), ("pods", team)):
            granted = partial(is_granted, account, resource, where)
            wait_for(granted, 60.0, f"the {account} may list {resource} in {where}")
    yield values
    helm.run("uninstall", "quire", "-n", namespace)


@pytest.fixture
def can(kubectl: Command, namespace: str) -> Can:
    """Whether an account of the release (its last word) may do a verb to a resource in a namespace."""

    def ask(account: str, verb: str, resource: str, where: str) -> bool:
        subject = f"system:serviceaccount:{namespace}:quire-{account}"
        kind, _, subresource = resource.partition("#")
        extra = [f"--subresource={subresource}"] if subresource else []
        answer = kubectl.run("auth", "can-i", verb, kind, *extra, "-n", where, f"--as={subject}").stdout.strip()
        assert answer in {"yes", "no"}, answer
        return str(answer) == "yes"

    return ask


ALLOWED = {
    "operator": {
        "watched": """
            list inferenceservices.quire.dev | watch modelroutes.quire.dev | list tenants.quire.dev
            patch inferenceservices.quire.dev#status | patch tenants.quire.dev#status
            create deployments.apps | patch deployments.apps | delete deployments.apps | watch deployments.apps
            create controllerrevisions.apps | delete controllerrevisions.apps
            create services | patch serviceaccounts | delete poddisruptionbudgets.policy | patch networkpolicies.networking.k8s.io
            list pods | patch pods | create persistentvolumeclaims | get secrets/quire-trust | patch secrets/quire-trust | create secrets
            create events
        """,
        "release": "list configmaps | patch configmaps | get leases/quire-operator | update leases/quire-operator | create leases",
    },
    "router": {"watched": "list pods | watch pods", "release": "list configmaps | watch configmaps"},
}
DENIED = {
    "operator": {
        "watched": """
            list secrets | watch secrets | get secrets | get secrets/other | delete secrets/quire-trust | patch secrets/other
            create inferenceservices.quire.dev | delete inferenceservices.quire.dev | patch inferenceservices.quire.dev
            patch inferenceservices.quire.dev#scale | create pods | delete pods | create pods#exec | create pods#eviction
            delete persistentvolumeclaims | delete replicasets.apps | create statefulsets.apps | create jobs.batch
            deletecollection deployments.apps | create roles.rbac.authorization.k8s.io | create serviceaccounts#token
            patch resourcequotas | list replicasets.apps | get pods | list persistentvolumeclaims | patch events
            update inferenceservices.quire.dev#status
        """,
        "release": """
            get leases/other | delete leases/quire-operator | patch leases/quire-operator | list leases | deletecollection configmaps
        """,
        "kube-system": "list pods | get secrets/quire-trust | create deployments.apps | list configmaps",
    },
    "router": {
        "watched": """
            create pods | delete pods | get secrets/quire-trust | create secrets | list inferenceservices.quire.dev
            create pods#exec | list services | patch deployments.apps | get pods
        """,
        "release": "create configmaps | patch configmaps | get leases/quire-operator | get secrets/quire-trust",
        "kube-system": "list pods | get configmaps",
    },
}


def asked(table: dict[str, dict[str, str]], places: dict[str, list[str]]) -> list[tuple[str, str, str, str]]:
    """Every question of a table as (account, verb, resource, namespace)."""
    found = []
    for account, by_place in table.items():
        for place, questions in by_place.items():
            for question in questions.replace("\n", "|").split("|"):
                if question.strip():
                    verb, resource = question.split()
                    found += [(account, verb, resource, where) for where in places[place]]
    return found


@pytest.mark.slow
def test_accounts_may_do_what_they_need_and_nothing_else(
    install_crds: list[str], installed: Path, can: Can, namespace: str, team: str
) -> None:
    places = {"watched": [team], "release": [namespace], "kube-system": ["kube-system"]}

    allowed, denied = asked(ALLOWED, places), asked(DENIED, places)

    with ThreadPoolExecutor(4) as threads:
        answers = dict(
            zip(allowed + denied, threads.map(lambda question: can(*question), allowed + denied), strict=True)
        )

    assert [question for question in allowed if not answers[question]] == []
    assert [question for question in denied if answers[question]] == []


@pytest.mark.parametrize(
    ("account", "watched", "release"),
    [("operator", OPERATOR_IN_WATCHED, OPERATOR_IN_RELEASE), ("router", ROUTER_IN_WATCHED, ROUTER_IN_RELEASE)],
)
def test_the_server_knows_of_no_other_rights(
    installed: Path, kubectl: Command, namespace: str, team: str, account: str, watched: Table, release: Table
) -> None:
    def granted(where: str) -> Table:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": where},
        }
        subject = f"--as=system:serviceaccount:{namespace}:quire-{account}"
        rules = kubectl.json("create", "-f", "-", subject, stdin=str(review).replace("'", '"'))["status"][
            "resourceRules"
        ]
        found: Table = {}
        for rule in rules:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for name in rule.get("resourceNames", [""]):
                        found.setdefault((group, resource, name), set()).update(rule["verbs"])
        # What every account may do: ask about itself.
        return {
            key: verbs
            for key, verbs in found.items()
            if key[0] not in {"authorization.k8s.io", "authentication.k8s.io"}
        }

    assert granted(team) == watched
    both = {key: watched.get(key, set()) | release.get(key, set()) for key in {**watched, **release}}
    assert granted(namespace) == both
    assert granted("kube-system") == {}


def everything(kubectl: Command, namespace: str) -> set[str]:
    """All objects of a namespace but events and what every namespace has."""
    kinds = [
        kind
        for kind in kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").split()
        if not kind.startswith("events")
    ]
    found = kubectl("get", ",".join(kinds), "-n", namespace, "-o", "name", "--ignore-not-found").split()
    ours_not = ("serviceaccount/default", "secret/default-token-", "configmap/kube-root-ca.crt")
    return {name for name in found if not name.startswith(ours_not)}


def test_an_uninstalled_chart_leaves_what_it_says_it_keeps(
    installed: Path, helm: Command, kubectl: Command, control_plane: ControlPlane, namespace: str, team: str
) -> None:
    def only_the_claim_is_left() -> bool:
        return everything(kubectl, namespace) <= {"persistentvolumeclaim/data-quire-redis-0"}

    assert "deployment.apps/quire-router" in everything(kubectl, namespace)
    assert everything(kubectl, team) != set()

    helm("uninstall", "quire", "-n", namespace)

    if control_plane.has_controllers:  # pods go by garbage collection
        wait_for(only_the_claim_is_left, 180.0, f"the end of {everything(kubectl, namespace)}")
    assert everything(kubectl, team) == set()


def templates(kubectl: Command, namespace: str) -> dict[str, Any]:
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["spec"]["template"]
        for item in kubectl.json("get", "deployments,statefulsets", "-n", namespace)["items"]
    }


def test_an_upgrade_keeps_the_password_and_restarts_nothing_that_it_does_not_change(
    installed: Path,
    helm: Command,
    kubectl: Command,
    chart: Chart,
    namespace: str,
    helm_flags: list[str | Path],
) -> None:
    def password() -> str:
        return str(kubectl.json("get", "secret", "quire-redis", "-n", namespace)["data"]["password"])

    before, pods = password(), templates(kubectl, namespace)
    lease = {"spec": {"holderIdentity": "somebody"}}
    kubectl("patch", "lease", "quire-operator", "-n", namespace, "--type=merge", "-p", str(lease).replace("'", '"'))

    helm(
        "upgrade", "quire", chart.folder, "-n", namespace, "-f", installed, *helm_flags,
        "--set", "worker.maxConcurrentUpgrades=3", "--set", "commonLabels.team=a",
    )  # fmt: skip

    assert password() == before
    after = templates(kubectl, namespace)
    assert {name for name, template in after.items() if template != pods[name]} == {"Deployment/quire-operator"}
    assert kubectl.json("get", "lease", "quire-operator", "-n", namespace)["spec"] == lease["spec"]


def test_an_old_server_is_refused_and_an_absent_api_is_named(
    helm: Command, chart: Chart, control_plane: ControlPlane, namespace: str, helm_flags: list[str | Path]
) -> None:
    if control_plane.version >= SUPPORTED:
        pytest.skip("this server is supported")

    with pytest.raises(CommandError, match=r"quire needs Kubernetes 1\.29 or later and this is v1\.\d+"):
        helm("install", "quire", chart.folder, "-n", namespace, *helm_flags)
    with pytest.raises(
        CommandError, match=r"router\.autoscaling\.enabled is true and the cluster has no autoscaling/v2"
    ):
        helm(
            "install", "quire", chart.folder, "-n", namespace, *helm_flags,
            "--set", "allowUnsupportedKubernetes=true,router.autoscaling.enabled=true",
        )  # fmt: skip


def test_the_definitions_survive_their_chart(
    helm: Command, kubectl: Command, crds_chart: Chart, namespace: str, helm_flags: list[str | Path]
) -> None:
    release = f"crds-{namespace}"
    # Other tests of the session may have made them.
    helm("install", release, crds_chart.folder, "-n", namespace, "--take-ownership", *helm_flags)
    roles = kubectl("get", "clusterrole", f"{release}-edit", f"{release}-view", "-o", "name").split()

    helm("uninstall", release, "-n", namespace)

    assert len(roles) == 2
    assert kubectl.run("get", "clusterrole", f"{release}-edit").returncode != 0
    kept = kubectl("get", "crd", "-o", "name").split()
    assert {
        f"customresourcedefinition.apiextensions.k8s.io/{kind}.quire.dev"
        for kind in ("inferenceservices", "modelroutes", "tenants")
    } <= set(kept)
