"""Cluster DNS answers for Services as pods expect it to."""

import socket
import struct

from cluster.dns import answer, machine_resolver, service_records

SERVICES = [
    {"metadata": {"namespace": "quire-system", "name": "router"}, "spec": {"clusterIP": "10.96.3.4"}},
    {"metadata": {"namespace": "a", "name": "redis"}, "spec": {"clusterIP": "None"}},
]
ENDPOINTS = [
    {
        "metadata": {"namespace": "a", "name": "redis"},
        "subsets": [{"addresses": [{"ip": "10.245.0.9", "hostname": "redis-0"}, {"ip": "10.245.0.8"}]}],
    }
]
RECORDS = service_records(SERVICES, ENDPOINTS)


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def addresses(response: bytes, num_answers: int) -> list[str]:
    return [socket.inet_ntoa(response[len(response) - 16 * n + 12 :][:4]) for n in range(num_answers, 0, -1)]


def test_a_service_has_its_cluster_address_whatever_the_case() -> None:
    response = answer(query("Router.quire-system.svc.cluster.local"), RECORDS)

    assert response is not None
    assert struct.unpack_from("!6H", response)[0] == 77
    assert struct.unpack_from("!6H", response)[1] & 0x800F == 0x8000
    assert addresses(response, struct.unpack_from("!6H", response)[3]) == ["10.96.3.4"]


def test_a_headless_service_has_its_pods_and_a_named_pod_its_own() -> None:
    service = answer(query("redis.a.svc.cluster.local"), RECORDS)
    pod = answer(query("redis-0.redis.a.svc.cluster.local"), RECORDS)

    assert service is not None and addresses(service, 2) == ["10.245.0.9", "10.245.0.8"]
    assert pod is not None and addresses(pod, 1) == ["10.245.0.9"]


def test_a_known_name_without_ipv6_is_empty_and_an_unknown_one_does_not_exist() -> None:
    empty = answer(query("router.quire-system.svc.cluster.local", kind=28), RECORDS)
    unknown = answer(query("nobody.quire-system.svc.cluster.local"), RECORDS)

    assert empty is not None and struct.unpack_from("!6H", empty)[1:4] == (0x8580, 1, 0)
    assert unknown is not None and struct.unpack_from("!6H", unknown)[1] & 0xF == 3


def test_names_outside_the_cluster_are_for_the_machine_s_resolver() -> None:
    assert answer(query("example.com"), RECORDS) is None
    assert machine_resolver("search x\nnameserver fe80::1\nnameserver 192.0.2.1\n") == "192.0.2.1"
