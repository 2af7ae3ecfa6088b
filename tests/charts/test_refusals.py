"""What the chart refuses to render, with the fix in the message; and what NOTES.txt warns of."""

from typing import Any

import pytest

from .chart import Chart, ChartRefusedError, of_kind


@pytest.mark.parametrize("version", ["1.20.2", "1.28.15", "1.28.9-gke.100"])
def test_an_old_kubernetes_is_refused_with_the_value_that_allows_it(chart: Chart, version: str) -> None:
    with pytest.raises(ChartRefusedError) as refused:
        chart.render(kube_version=version)

    assert f"quire needs Kubernetes 1.29 or later and this is v{version}" in str(refused.value)
    assert "set allowUnsupportedKubernetes=true" in str(refused.value)
    assert chart.render({"allowUnsupportedKubernetes": True}, kube_version=version)


@pytest.mark.parametrize("version", ["1.29.0", "1.29.0-eks-1", "1.35.2"])
def test_a_current_kubernetes_is_taken_whatever_its_vendor_appends(chart: Chart, version: str) -> None:
    assert chart.render(kube_version=version)


@pytest.mark.parametrize(
    ("values", "api", "name"),
    [
        (
            {"metrics": {"serviceMonitor": {"enabled": True}}},
            "monitoring.coreos.com/v1",
            "metrics.serviceMonitor.enabled",
        ),
        ({"metrics": {"podMonitor": {"enabled": True}}}, "monitoring.coreos.com/v1", "metrics.podMonitor.enabled"),
        ({"metrics": {"rules": {"enabled": True}}}, "monitoring.coreos.com/v1", "metrics.rules.enabled"),
        (
            {"router": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}}},
            "gateway.networking.k8s.io/v1",
            "router.httpRoute.enabled",
        ),
    ],
)
def test_what_the_cluster_lacks_is_said_not_left_out(chart: Chart, values: dict[str, Any], api: str, name: str) -> None:
    with pytest.raises(ChartRefusedError) as refused:
        chart.render(values, apis=())

    assert f"{name} is true and the cluster has no {api}" in str(refused.value)
    assert f"set {name}=false" in str(refused.value)
    assert f"--api-versions {api}" in str(refused.value)
    assert chart.render(values, apis=[api])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"router": {"terminationGracePeriodSeconds": 65}},
            (
                "router.terminationGracePeriodSeconds (65) must be above "
                "router.shutdownDelaySeconds + router.drainTimeoutSeconds (65)"
            ),
        ),
        ({"models": {"cache": {"kind": "HostPath"}}}, "set models.cache.hostPath to an absolute folder"),
        ({"models": {"cache": {"hostPath": "/var/models"}}}, "it is used with models.cache.kind=HostPath only"),
        ({"models": {"cache": {"maxSize": "1Ti"}}}, "an EmptyDir has models.cache.size"),
        ({"worker": {"spot": {"labelKey": "spot"}}}, "worker.spot: set labelKey and labelValue, or neither"),
        ({"worker": {"runAsUser": None}}, "worker.runAsUser is empty, and workers would run as root"),
        ({"redis": {"mode": "external"}}, "set redis.external.existingSecret"),
        ({"router": {"httpRoute": {"enabled": True}}}, "set router.httpRoute.parentRefs"),
        (
            {"router": {"autoscaling": {"enabled": True, "minReplicas": 11}}},
            "router.autoscaling.minReplicas (11) is above maxReplicas (10)",
        ),
        ({"watchNamespaces": ["*"]}, "for all of them set clusterWide=true"),
    ],
)
def test_values_that_contradict_each_other_are_refused(chart: Chart, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ChartRefusedError) as refused:
        chart.render(values)

    assert message in str(refused.value)


def test_a_release_whose_name_leaves_no_room_is_refused(chart: Chart) -> None:
    name = "a" * 47

    with pytest.raises(ChartRefusedError, match="set fullnameOverride to a shorter one"):
        chart.render(name=name)
    assert "llms-router" in of_kind(chart.render({"fullnameOverride": "llms"}, name=name), "Deployment")


def test_the_charts_metadata_says_nothing_of_versions_that_helm_would_enforce(chart: Chart, crds_chart: Chart) -> None:
    # Helm's own check knows no exception; the template's does.
    for each in (chart, crds_chart):
        assert "\nkubeVersion:" not in (each.folder / "Chart.yaml").read_text()


@pytest.mark.parametrize("kind", ["chart", "crds_chart"])
def test_helm_lint_finds_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    each: Chart = request.getfixturevalue(kind)

    assert "1 chart(s) linted, 0 chart(s) failed" in each.lint()


def test_the_notes_say_where_how_and_what_stays(chart: Chart) -> None:
    notes = chart.notes()

    assert "http://quire-router.llm:80/v1" in notes
    assert "kind: InferenceService" in notes
    assert "kubectl -n llm get inferenceservices.quire.dev" in notes
    assert "WARNING: while there is no Tenant" in notes
    assert "WARNING: the definitions are missing" in notes
    assert "`helm uninstall quire` keeps: the definitions and your InferenceServices" in notes


@pytest.mark.parametrize(
    ("values", "present", "absent"),
    [
        (
            {"router": {"apiKeys": {"existingSecret": "keys"}}},
            '-H "Authorization: Bearer $KEY"',
            "while there is no Tenant",
        ),
        ({"router": {"requireTenant": True}}, "quire tenant create acme -n llm", "while there is no Tenant"),
        ({"router": {"admin": {"enabled": True}}}, "get secret quire-router-admin -o", "existingSecret: "),
        ({"clusterWide": True}, "It works in every namespace.", "It works in llm"),
        ({"watchNamespaces": ["team-a"]}, "It works in llm, team-a.", "every namespace."),
        (
            {"router": {"ingress": {"enabled": True, "hosts": ["llm.example.com"], "tls": [{}]}}},
            "https://llm.example.com/v1",
            "http://llm.example.com",
        ),
        ({"redis": {"mode": "bundled"}}, "the volume of Redis", "HostPath"),
        (
            {"models": {"cache": {"kind": "HostPath", "hostPath": "/m"}}},
            "do not pass the restricted Pod Security profile",
            "the volume of Redis",
        ),
    ],
)
def test_the_notes_follow_the_values(chart: Chart, values: dict[str, Any], present: str, absent: str) -> None:
    notes = chart.notes(values)

    assert present in notes
    assert absent not in notes
