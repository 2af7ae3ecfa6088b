"""The slice by which the scaler's Service leads to one operator, and who hears of edges."""

import pytest

from quire_contract.kube.resources import ENDPOINT_SLICE_V1
from quire_operator.keda.demand import EdgeHub
from quire_operator.keda.endpoint import LeaderAddress, endpoint_slice

from .world import UNKNOWN


@pytest.mark.parametrize(
    ("ip", "name", "family"),
    [("10.0.0.7", "quire-scaler-ipv4", "IPv4"), ("fd00::7", "quire-scaler-ipv6", "IPv6")],
)
def test_a_slice_has_the_leaders_address_and_no_other(ip, name, family) -> None:
    leader = LeaderAddress(namespace="llm", service="quire-scaler", pod="quire-operator-0", ip=ip, port=9091)

    found = endpoint_slice(leader, ENDPOINT_SLICE_V1, "uid")

    assert (found["metadata"]["name"], found["addressType"]) == (name, family)
    assert found["metadata"]["labels"]["kubernetes.io/service-name"] == "quire-scaler"
    assert [endpoint["addresses"] for endpoint in found["endpoints"]] == [[ip]]
    assert found["ports"] == [{"name": "grpc", "port": 9091, "protocol": "TCP"}]


def test_an_edge_is_told_to_who_asked_for_its_service_until_they_asked_no_more() -> None:
    hub, heard = EdgeHub(lambda service: UNKNOWN), []
    end_first = hub.subscribe("models/chat", lambda: heard.append("first"))
    end_second = hub.subscribe("models/chat", lambda: heard.append("second"))

    hub.tell("models/chat")
    hub.tell("models/other")
    end_first()
    hub.tell("models/chat")
    end_second()
    hub.tell("models/chat")

    assert heard == ["first", "second", "second"]
