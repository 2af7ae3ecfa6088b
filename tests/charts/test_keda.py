"""KEDA's external scaler in the chart: who is led to it, who is let in, and what the operator knows of it."""

from typing import Any

import pytest
import yaml

from quire_contract import names

from .chart import Chart, ChartRefusedError, Manifest, of_kind, one

TLS: dict[str, Any] = {"keda": {"tlsSecret": "scaler-tls", "authentication": {"name": "quire-scaler"}}}


def container(objects: list[Manifest]) -> Manifest:
    (found,) = one(objects, "Deployment", "quire-operator")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def platform(objects: list[Manifest]) -> Manifest:
    return dict(yaml.safe_load(one(objects, "ConfigMap", "quire-operator")["data"]["platform.yaml"]))


def test_the_service_has_no_selector_and_the_operator_is_told_to_lead_it(chart: Chart) -> None:
    objects = chart.render()

    service = one(objects, "Service", "quire-scaler")["spec"]
    assert "selector" not in service
    assert service["ports"] == [
        {"name": "grpc", "port": names.PORT_SCALER, "targetPort": names.PORT_SCALER_POD, "protocol": "TCP"}
    ]
    arguments = container(objects)["args"]
    assert f"--scaler-port={names.PORT_SCALER_POD}" in arguments
    assert "--scaler-service=quire-scaler" in arguments
    assert {"POD_NAME", "POD_IP"} <= {entry["name"] for entry in container(objects)["env"]}
    assert platform(objects)["keda"] == {"address": f"quire-scaler.llm.svc:{names.PORT_SCALER}", "tls": False}


def test_only_the_named_namespace_comes_in(chart: Chart) -> None:
    policy = one(chart.render({"keda": {"namespace": "autoscaling"}}), "NetworkPolicy", "quire-operator")

    assert policy["spec"]["ingress"] == [
        {
            "ports": [{"port": names.PORT_SCALER_POD, "protocol": "TCP"}],
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "autoscaling"}}}],
        }
    ]


def test_with_a_secret_the_scaler_has_tls_and_asks_for_kedas_certificate(chart: Chart) -> None:
    objects = chart.render(TLS)

    folder = "/etc/quire/scaler-tls"
    assert [argument for argument in container(objects)["args"] if "tls" in argument] == [
        f"--scaler-tls-cert={folder}/tls.crt",
        f"--scaler-tls-key={folder}/tls.key",
        f"--scaler-tls-client-ca={folder}/ca.crt",
    ]
    assert {"name": "scaler-tls", "mountPath": folder, "readOnly": True} in container(objects)["volumeMounts"]
    spec = one(objects, "Deployment", "quire-operator")["spec"]["template"]["spec"]
    assert {"name": "scaler-tls", "secret": {"secretName": "scaler-tls", "defaultMode": 0o440}} in spec["volumes"]
    assert platform(objects)["keda"] == {
        "address": "quire-scaler.llm.svc:9090",
        "tls": True,
        "authentication": "quire-scaler",
        "authenticationKind": "ClusterTriggerAuthentication",
    }


def test_a_scaler_that_would_let_nobody_in_is_refused(chart: Chart) -> None:
    with pytest.raises(ChartRefusedError, match=r"set keda\.authentication\.name"):
        chart.render({"keda": {"tlsSecret": "scaler-tls"}})

    open_one = chart.render({"keda": {"tlsSecret": "scaler-tls", "clientCertificates": False}})
    assert not [argument for argument in container(open_one)["args"] if "client-ca" in argument]


def test_without_keda_nothing_of_it_is_there(chart: Chart) -> None:
    objects = chart.render({"keda": {"enabled": False}})

    assert "quire-scaler" not in of_kind(objects, "Service")
    assert not [argument for argument in container(objects)["args"] if "scaler" in argument]
    assert "keda" not in platform(objects)
    assert one(objects, "NetworkPolicy", "quire-operator")["spec"]["ingress"] == []
    groups = {
        group for role in of_kind(objects, "Role").values() for rule in role["rules"] for group in rule["apiGroups"]
    }
    assert not {"keda.sh", "discovery.k8s.io"} & groups
