"""What routers are told of a service's routing and prices; that pods are told nothing."""

from collections.abc import Callable
from typing import Any

from quire_contract.router_config import ModelEntry, ServiceEntry
from quire_contract.router_tenants import PriceEntry
from quire_operator.api.validation import parse_service
from quire_operator.platform import Platform
from quire_operator.revisions import revision_name
from quire_operator.router_shards import service_entry
from quire_operator.traffic import PLAIN, traffic_of

Make = Callable[..., dict[str, Any]]
ROUTING = "{policy: SessionAffinity, maxQueuedRequests: 9, queueTimeoutSeconds: 30, sticky: User}"
SPEC = f"{{routing: {ROUTING}, price: {{input: '0.15', output: '0.6'}}}}"


def test_routing_and_price_reach_routers(document: Make) -> None:
    entry = service_entry("team", "llama", ["llama", "alias"], {"r1": 100}, traffic_of(document(SPEC), PLAIN))

    price = PriceEntry(input="0.15", output="0.6")
    assert entry.models == tuple(
        ModelEntry(name=name, service="team/llama", price=price) for name in ("llama", "alias")
    )
    assert entry.service == ServiceEntry(
        id="team/llama",
        weights={"r1": 100},
        policy="session_affinity",
        max_queued_requests=9,
        queue_timeout_s=30.0,
        sticky="user",
    )


def test_what_cannot_be_read_leaves_what_was_said_before(document: Make) -> None:
    before = traffic_of(document(SPEC), PLAIN)

    after = traffic_of({"spec": {"routing": {"policy": "Magic"}, "price": {"input": "much"}}}, before)

    assert after == before
    assert traffic_of({"spec": {}}, before) == PLAIN


def test_how_long_a_request_waits_for_a_sleeping_service_reaches_routers(document: Make) -> None:
    said = traffic_of(document("{scaling: {minReplicas: 0, maxReplicas: 2, holdTimeoutSeconds: 90}}"), PLAIN)
    kept = traffic_of({"spec": {"scaling": {"maxReplicas": "many"}}}, said)
    usual = traffic_of(document("{scaling: {maxReplicas: 2}}"), PLAIN)

    timeouts = [service_entry("team", "llama", ["llama"], {}, one).service for one in (said, kept, usual, PLAIN)]

    assert [entry and entry.hold_timeout_s for entry in timeouts] == [90.0, 90.0, 300.0, None]


def test_neither_makes_a_revision(document: Make) -> None:
    services = [parse_service(document(spec)) for spec in ("{}", SPEC)]

    plain, priced = (revision_name(service, Platform()) for service in services)

    assert plain == priced
