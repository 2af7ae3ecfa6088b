"""What routers are set to by the chart: the settings' shard, the admin port, the folder for what they know."""

import base64
import json
from typing import Any

import pytest

from quire_contract.router_config import decode_config
from quire_contract.router_settings import AdmissionSettings, FilterEntry, RouterSettingsEntry

from .chart import Chart, ChartRefusedError, Manifest, of_kind, one
from .settings_schema import with_settings

ADMIN = {"router": {"admin": {"enabled": True}}}


def router_pod(objects: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The pod's spec, and its container."""
    spec = one(objects, "Deployment", "quire-router")["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def test_settings_become_a_shard_that_routers_can_read(chart: Chart) -> None:
    settings = {
        "admission": {"max_queued_requests": 1_000_000, "kv_use_limit": 0.5},
        "filters": [{"name": "mails", "pii": ["email"], "action": "redact"}],
    }
    objects = chart.render({"router": {"settings": settings, "requireTenant": True}})

    shard = one(objects, "ConfigMap", "quire-router-settings")
    config = decode_config(shard["data"]["router.json"].encode())
    assert shard["metadata"]["labels"]["quire.dev/router-config"] == "quire"
    assert shard["metadata"]["labels"]["app.kubernetes.io/managed-by"] != "quire-operator"
    assert config.require_tenant
    assert config.settings == RouterSettingsEntry(
        admission=AdmissionSettings(max_queued_requests=1_000_000, kv_use_limit=0.5),
        filters=[FilterEntry(name="mails", pii=["email"], action="redact")],
    )
    assert (config.models, config.endpoints, config.tenants) == ([], [], [])


def test_without_settings_there_is_no_shard(chart: Chart) -> None:
    assert "quire-router-settings" not in of_kind(chart.render(), "ConfigMap")


@pytest.mark.parametrize(
    "settings",
    [
        {"admision": {}},
        {"admission": {"max_queued": 1}},
        {"admission": {"max_queued_requests": "many"}},
        {"faults": {"max_resumes": -1}},
        {"filters": [{"name": "x", "pii": ["name"]}]},
        {"filters": [{"pii": ["email"]}]},
    ],
    ids=json.dumps,
)
def test_settings_that_no_router_would_take_are_refused_by_helm(chart: Chart, settings: dict[str, Any]) -> None:
    with pytest.raises(ChartRefusedError, match="router"):
        chart.render({"router": {"settings": settings}})


def test_the_schema_of_the_settings_is_the_contracts(chart: Chart) -> None:
    schema = json.loads((chart.folder / "values.schema.json").read_text())

    assert schema == with_settings(schema), "run `python tests/charts/settings_schema.py`"


def test_the_admin_port_is_off_by_default(chart: Chart) -> None:
    objects = chart.render()

    assert "quire-router-admin" not in of_kind(objects, "Service")
    assert not [argument for argument in router_pod(objects)[1]["args"] if "admin" in argument]


def test_the_admin_port_has_a_service_and_a_token_and_no_way_in_from_the_network(chart: Chart) -> None:
    objects = chart.render(ADMIN)
    spec, router = router_pod(objects)
    secret = one(objects, "Secret", "quire-router-admin")

    assert one(objects, "Service", "quire-router-admin")["spec"]["ports"] == [
        {"name": "admin", "port": 8081, "targetPort": "admin", "protocol": "TCP"}
    ]
    assert len(base64.b64decode(secret["data"]["token"])) == 40
    assert {"--admin-host=$(HOST)", "--admin-port=8081", "--admin-token-file=/etc/quire/admin/token"} <= set(
        router["args"]
    )
    assert {"name": "admin", "mountPath": "/etc/quire/admin", "readOnly": True} in router["volumeMounts"]
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "admin")
    assert volume["secret"]["secretName"] == "quire-router-admin"
    ingress = one(objects, "NetworkPolicy", "quire-router")["spec"]["ingress"]
    assert [port["port"] for rule in ingress for port in rule["ports"]] == [8080]


def test_who_may_reach_the_admin_port_is_said_by_peers_and_a_secret_may_be_ones_own(chart: Chart) -> None:
    peer = {"podSelector": {"matchLabels": {"app": "billing"}}}
    admin = {"enabled": True, "clientsFrom": [peer], "existingSecret": "mine", "key": "pass", "port": 90}
    objects = chart.render({"router": {"admin": admin}})

    rule = one(objects, "NetworkPolicy", "quire-router")["spec"]["ingress"][-1]
    spec, router = router_pod(objects)
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "admin")
    assert rule == {"ports": [{"port": 8081, "protocol": "TCP"}], "from": [peer]}
    assert of_kind(objects, "Secret") == {}
    assert volume["secret"]["secretName"] == "mine"
    assert "--admin-token-file=/etc/quire/admin/pass" in router["args"]
    assert one(objects, "Service", "quire-router-admin")["spec"]["ports"][0]["port"] == 90


def test_routers_have_a_folder_for_what_they_know(chart: Chart) -> None:
    spec, router = router_pod(chart.render())

    assert "--state-dir=$(STATE_DIR)" in router["args"]
    assert {"name": "STATE_DIR", "value": "/var/lib/quire/state"} in router["env"]
    assert {"name": "state", "mountPath": "/var/lib/quire/state"} in router["volumeMounts"]
    assert {"name": "state", "emptyDir": {"sizeLimit": "512Mi"}} in spec["volumes"]
