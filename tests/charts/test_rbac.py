"""What operator and router may do: exactly this, and nothing that is not named."""

from collections.abc import Sequence
from typing import Any

import pytest

from .chart import Chart, Manifest, of_kind
from .settings import EVERYTHING

WATCH = {"list", "watch"}
READ = WATCH | {"get"}
OWN = READ | {"create", "patch", "delete"}
Table = dict[tuple[str, str, str], set[str]]

OPERATOR_IN_WATCHED: Table = {
    ("quire.dev", "inferenceservices", ""): READ,
    **{("quire.dev", kind, ""): WATCH for kind in ("modelroutes", "tenants")},
    **{("quire.dev", f"{kind}/status", ""): {"patch"} for kind in ("inferenceservices", "modelroutes", "tenants")},
    ("apps", "deployments", ""): OWN,
    ("apps", "controllerrevisions", ""): OWN,
    ("", "services", ""): OWN,
    ("", "serviceaccounts", ""): OWN,
    ("policy", "poddisruptionbudgets", ""): OWN,
    ("networking.k8s.io", "networkpolicies", ""): OWN,
    ("", "pods", ""): WATCH | {"patch"},
    ("", "persistentvolumeclaims", ""): {"get", "create"},
    ("", "secrets", "quire-trust"): {"get", "patch"},
    ("", "secrets", ""): {"create"},
    ("", "events", ""): {"create"},
}
OPERATOR_IN_RELEASE: Table = {
    ("", "configmaps", ""): OWN - {"get"},
    ("coordination.k8s.io", "leases", "quire-operator"): {"get", "update"},
    ("coordination.k8s.io", "leases", ""): {"create"},
}
ROUTER_IN_WATCHED: Table = {("", "pods", ""): WATCH}
ROUTER_IN_RELEASE: Table = {("", "configmaps", ""): WATCH}


def table(role: Manifest) -> Table:
    """A role's verbs by (group, resource, name); "" is every name."""
    found: Table = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    found.setdefault((group, resource, name), set()).update(rule["verbs"])
    return found


def roles(objects: Sequence[Manifest]) -> dict[tuple[str, str, str], Manifest]:
    """Roles by (kind, namespace, name)."""
    return {
        (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item
        for item in objects
        if item["kind"] in {"Role", "ClusterRole"}
    }


def test_by_default_there_is_a_role_for_each_namespace_and_nothing_for_the_cluster(chart: Chart) -> None:
    found = {key: table(role) for key, role in roles(chart.render({"watchNamespaces": ["team-a"]})).items()}

    assert found == {
        ("Role", "llm", "quire-operator"): OPERATOR_IN_WATCHED,
        ("Role", "team-a", "quire-operator"): OPERATOR_IN_WATCHED,
        ("Role", "llm", "quire-operator-release"): OPERATOR_IN_RELEASE,
        ("Role", "llm", "quire-router"): ROUTER_IN_WATCHED,
        ("Role", "team-a", "quire-router"): ROUTER_IN_WATCHED,
        ("Role", "llm", "quire-router-release"): ROUTER_IN_RELEASE,
    }


def test_for_every_namespace_there_are_cluster_roles_with_the_same_rules(chart: Chart) -> None:
    found = {key: table(role) for key, role in roles(chart.render({"clusterWide": True})).items()}

    assert found == {
        ("ClusterRole", "", "llm-quire-operator"): OPERATOR_IN_WATCHED,
        ("Role", "llm", "quire-operator-release"): OPERATOR_IN_RELEASE,
        ("ClusterRole", "", "llm-quire-router"): ROUTER_IN_WATCHED,
        ("Role", "llm", "quire-router-release"): ROUTER_IN_RELEASE,
    }


@pytest.mark.parametrize("values", [EVERYTHING, {**EVERYTHING, "clusterWide": True}])
def test_nothing_is_granted_by_wildcard_and_no_secret_is_listed(chart: Chart, values: dict[str, Any]) -> None:
    for role in roles(chart.render(values)).values():
        for rule in role["rules"]:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["quire-trust"]
                assert not {"list", "watch", "deletecollection"} & set(rule["verbs"])


@pytest.mark.parametrize("values", [{"watchNamespaces": ["team-a"]}, {"clusterWide": True}])
def test_every_role_is_bound_to_the_component_it_is_named_for(chart: Chart, values: dict[str, Any]) -> None:
    objects = chart.render(values)
    bindings = [item for item in objects if item["kind"] in {"RoleBinding", "ClusterRoleBinding"}]

    bound = {
        (item["roleRef"]["kind"], item["metadata"].get("namespace", ""), item["roleRef"]["name"]): item
        for item in bindings
    }
    assert bound.keys() == roles(objects).keys()
    for (_, _, name), binding in bound.items():
        account = "quire-operator" if "operator" in name else "quire-router"
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "llm"}]
        assert account in of_kind(objects, "ServiceAccount")


def test_roles_of_somebody_elses_making_are_left_to_them(chart: Chart) -> None:
    kinds = {item["kind"] for item in chart.render({"rbac": {"create": False}})}

    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} & kinds
