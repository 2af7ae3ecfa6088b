"""The pods of the chart: what they may do, what they run, and that they are those the operator's own manifests describe."""

from typing import Any

import pytest

from quire_operator.manifests import router as reference
from quire_operator.platform import Platform
from quire_router.config import parse_args

from .chart import Chart, Manifest, one, pod_templates
from .leaves import overlaid
from .pod_security import violations
from .settings import EVERYTHING, EXTERNAL_REDIS


@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, EXTERNAL_REDIS, {"redis": {"mode": "bundled", "persistence": {"enabled": False}}}]
)
def test_every_pod_passes_the_restricted_profile(chart: Chart, values: dict[str, Any]) -> None:
    found = {name: violations(template) for name, template in pod_templates(chart.render(values))}

    assert {"Deployment/quire-operator", "Deployment/quire-router", "Pod/quire-test"} <= found.keys()
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_the_checker_sees_what_the_profile_refuses() -> None:
    bad: Manifest = {
        "spec": {
            "hostNetwork": True,
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
            "containers": [{"name": "c", "ports": [{"hostPort": 1}], "securityContext": {"privileged": True}}],
        }
    }

    assert violations(bad) == [
        "hostNetwork",
        "volume v: hostPath",
        "c: privileged",
        "c: allowPrivilegeEscalation is not false",
        "c: runAsNonRoot is not true",
        "c: capabilities.drop has no ALL",
        "c: seccompProfile is not RuntimeDefault",
        "c: readOnlyRootFilesystem is not true",
        "c: hostPort 1",
    ]


def container(deployment: Manifest) -> Manifest:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_the_router_is_the_one_that_the_operators_manifests_describe(chart: Chart) -> None:
    ours = one(chart.render(), "Deployment", "quire-router")
    theirs = reference.deployment(Platform(namespace="llm", router_replicas=2))
    mine, other = ours["spec"]["template"]["spec"], theirs["spec"]["template"]["spec"]

    for key in ("selector", "strategy", "replicas", "revisionHistoryLimit"):
        assert ours["spec"][key] == theirs["spec"][key]
    for key in (
        "securityContext", "topologySpreadConstraints", "serviceAccountName", "enableServiceLinks",
        "automountServiceAccountToken", "terminationGracePeriodSeconds",
    ):  # fmt: skip
        assert mine[key] == other[key], key
    for key in (
        "name", "command", "image", "imagePullPolicy", "ports", "resources", "startupProbe", "readinessProbe",
        "livenessProbe", "securityContext",
    ):  # fmt: skip
        assert container(ours)[key] == container(theirs)[key], key
    labels, expected = ours["spec"]["template"]["metadata"]["labels"], theirs["spec"]["template"]["metadata"]["labels"]
    assert labels == {**expected, "app.kubernetes.io/managed-by": "Helm"}
    assert mine["volumes"] == other["volumes"]
    assert container(ours)["volumeMounts"] == container(theirs)["volumeMounts"]
    assert parse_args(expanded(ours)) == parse_args([*expanded(theirs), "--watch-namespace", "llm"])
    # There, flags come from the environment, so that `quire up` can give others.
    only_there = {reference.ENV_SOURCE, reference.ENV_SHUTDOWN_DELAY}
    env = [variable for variable in container(theirs)["env"] if variable["name"] not in only_there]
    assert by_name(container(ours)["env"]) == by_name(env)


def by_name(variables: list[Manifest]) -> dict[str, Manifest]:
    return {variable["name"]: variable for variable in variables}


def expanded(deployment: Manifest) -> list[str]:
    """A container's arguments as the kubelet passes them."""
    args = list(container(deployment)["args"])
    for variable in container(deployment)["env"]:
        args = [argument.replace(f"$({variable['name']})", variable.get("value", "")) for argument in args]
    return args


@pytest.mark.parametrize("wide", [False, True])
def test_the_router_takes_the_flags_that_it_is_given(chart: Chart, wide: bool) -> None:
    values = {"clusterWide": wide, "watchNamespaces": ["team-a"], "router": {"extraArgs": ["--idle-timeout", "9"]}}

    settings = parse_args(expanded(one(chart.render(values, name="prod"), "Deployment", "prod-router")))

    assert settings.kubernetes
    assert (settings.release, settings.release_namespace) == ("prod", "llm")
    assert settings.watch_namespaces == (("*",) if wide else ("llm", "team-a"))
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert (settings.shutdown_delay_s, settings.shutdown_timeout_s, settings.idle_timeout_s) == (5, 60, 9)


def test_the_router_has_longer_to_end_than_it_takes(chart: Chart) -> None:
    values = {"router": {"shutdownDelaySeconds": 7, "drainTimeoutSeconds": 600, "terminationGracePeriodSeconds": 640}}
    router = one(chart.render(values), "Deployment", "quire-router")

    settings = parse_args(expanded(router))

    grace = router["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.shutdown_delay_s + settings.shutdown_timeout_s


def test_only_operator_and_router_have_an_api_token_and_it_is_short_lived(chart: Chart) -> None:
    with_token = set()
    for name, template in pod_templates(chart.render(EVERYTHING)):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        sources = [
            source for volume in spec.get("volumes", []) for source in volume.get("projected", {}).get("sources", [])
        ]
        tokens = [source["serviceAccountToken"] for source in sources if "serviceAccountToken" in source]
        assert all(token["expirationSeconds"] < 3700 for token in tokens)
        if tokens:
            with_token.add(name)

    assert with_token == {"Deployment/quire-operator", "Deployment/quire-router"}


def test_a_change_of_the_platform_restarts_the_operator_and_not_the_router(chart: Chart) -> None:
    before, after = chart.render(), chart.render({"worker": {"image": {"tag": "next"}}})

    assert one(before, "Deployment", "quire-router") == one(after, "Deployment", "quire-router")
    templates = [one(objects, "Deployment", "quire-operator")["spec"]["template"] for objects in (before, after)]
    assert templates[0]["metadata"]["annotations"] != templates[1]["metadata"]["annotations"]


def test_pods_do_not_carry_the_charts_version(chart: Chart) -> None:
    for name, template in pod_templates(chart.render(EVERYTHING)):
        if not name.startswith("Pod/"):
            assert not {"helm.sh/chart", "app.kubernetes.io/version"} & template["metadata"]["labels"].keys()


def test_own_labels_win_over_those_of_values(chart: Chart) -> None:
    values = {
        "router": {"podLabels": {"quire.dev/role": "mine", "team": "a"}},
        "commonLabels": {"quire.dev/role": "mine"},
    }

    router = one(chart.render(values), "Deployment", "quire-router")

    assert router["metadata"]["labels"]["quire.dev/role"] == "router"
    assert router["spec"]["template"]["metadata"]["labels"]["quire.dev/role"] == "router"
    assert router["spec"]["template"]["metadata"]["labels"]["team"] == "a"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "quire-router:0.1.0"),
        ({"global": {"imageRegistry": "registry.example.com/llm"}}, "registry.example.com/llm/quire-router:0.1.0"),
        ({"router": {"image": {"registry": "ghcr.io", "repository": "a/b", "tag": "9"}}}, "ghcr.io/a/b:9"),
        ({"router": {"image": {"tag": "9", "digest": "sha256:" + "0" * 64}}}, "quire-router@sha256:" + "0" * 64),
    ],
)
def test_an_images_name_is_put_together(chart: Chart, values: dict[str, Any], expected: str) -> None:
    assert container(one(chart.render(values), "Deployment", "quire-router"))["image"] == expected


def test_pull_secrets_reach_every_pod(chart: Chart) -> None:
    values = overlaid(EVERYTHING, {"global": {"imagePullSecrets": ["a", {"name": "b"}]}})

    for name, template in pod_templates(chart.render(values)):
        assert template["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}], name


def test_with_autoscaling_the_deployment_names_no_replicas(chart: Chart) -> None:
    objects = chart.render(EVERYTHING)

    assert "replicas" not in one(objects, "Deployment", "quire-router")["spec"]
    assert one(objects, "HorizontalPodAutoscaler", "quire-router")["spec"]["minReplicas"] == 2


def test_the_platform_may_choose_the_user(chart: Chart) -> None:
    nothing = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}

    router = one(chart.render({"router": {"podSecurityContext": nothing}}), "Deployment", "quire-router")

    assert router["spec"]["template"]["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroupChangePolicy": "OnRootMismatch",
    }
