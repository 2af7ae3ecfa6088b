"""The router's file is written whole and refused with the field's name."""

from pathlib import Path

import msgspec
import pytest

from quire_contract.router_config import (
    EndpointEntry,
    ModelEntry,
    RouteEntry,
    RouterConfig,
    RouterConfigError,
    RouteTargetEntry,
    ServiceEntry,
    decode_config,
    encode_config,
    merge_shards,
    read_config,
    write_config,
)

ENDPOINT = EndpointEntry(
    id="demo-0",
    url="http://127.0.0.1:8000",
    models=["demo"],
    events="tcp://127.0.0.1:5557",
    replay="tcp://127.0.0.1:5558",
)
CONFIG = RouterConfig(models=[ModelEntry(name="demo", service="default/demo")], endpoints=[ENDPOINT])
SPLIT = ServiceEntry(id="default/demo", weights={"r1": 95, "r2": 5})
ROUTE = RouteEntry(model="chat", targets=[RouteTargetEntry(model="demo", weight=1)], fallbacks=["other"], timeout_s=30)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    write_config(path, RouterConfig(models=[], endpoints=[]))

    write_config(path, CONFIG)

    assert read_config(path) == CONFIG
    assert [entry.name for entry in tmp_path.iterdir()] == ["router.json"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RouterConfigError, match=r"absent\.json: cannot be read"):
        read_config(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version is 2"),
        ({"endpoints": [ENDPOINT, ENDPOINT]}, "endpoints: id: 'demo-0' is used twice"),
        ({"models": [ModelEntry(name="demo")] * 2}, "models: name: 'demo' is used twice"),
        ({"models": []}, r"endpoints\[0\].models: 'demo' is not in models"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, url="127.0.0.1:8000")]}, r"endpoints\[0\].url"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, url="http://h:1/path")]}, r"endpoints\[0\].url"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, id="a@b")]}, r"endpoints\[0\].id"),
        ({"endpoints": [msgspec.structs.replace(ENDPOINT, events="5557")]}, r"endpoints\[0\].events"),
        ({"services": [SPLIT, SPLIT]}, "services: id: 'default/demo' is used twice"),
        ({"services": [ServiceEntry(id="demo")]}, r"services\[0\].id: 'demo' must be namespace/name"),
        ({"services": [ServiceEntry(id="a/b", weights={"r1": -1})]}, r"services\[0\].weights: 'r1' has weight -1"),
        (
            {"services": [ServiceEntry(id="a/b", hold_timeout_s=-1)]},
            r"services\[0\].hold_timeout_s: -1.0 must be a number",
        ),
        ({"services": [ServiceEntry(id="a/b", weights={"r1": 0})]}, r"services\[0\].weights: all weights are 0"),
        ({"routes": [ROUTE, ROUTE]}, "routes: model: 'chat' is used twice"),
        (
            {"routes": [msgspec.structs.replace(ROUTE, model="demo")]},
            r"routes\[0\].model: 'demo' must be a name of its own",
        ),
        ({"routes": [msgspec.structs.replace(ROUTE, targets=[])]}, r"routes\[0\].targets: must name at least one"),
        (
            {"routes": [msgspec.structs.replace(ROUTE, targets=ROUTE.targets * 2)]},
            r"routes\[0\].targets: 'demo' is a target",
        ),
        (
            {"routes": [msgspec.structs.replace(ROUTE, fallbacks=["chat"])]},
            r"routes\[0\].targets: 'chat' must not lead",
        ),
        ({"routes": [msgspec.structs.replace(ROUTE, timeout_s=0)]}, r"routes\[0\].timeout_s"),
        (
            {"routes": [msgspec.structs.replace(ROUTE, targets=[RouteTargetEntry(model="demo", weight=0)])]},
            r"routes\[0\].targets: all weights are 0",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(change: dict[str, object], words: str) -> None:
    data = encode_config(msgspec.structs.replace(CONFIG, **change))

    with pytest.raises(RouterConfigError, match=words):
        decode_config(data, "router.json")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "router.json: "),
        (b'{"models": [], "endpoint": []}', "unknown field `endpoint`"),
        (b'{"models": []}', "endpoints"),
        (b'{"models": [], "endpoints": [], "services": [{"id": "a/b", "weight": {}}]}', "unknown field `weight`"),
        (b'{"models": [], "endpoints": [], "routes": [{"model": "a"}]}', "targets"),
    ],
)
def test_a_misspelt_or_broken_file_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(RouterConfigError, match=words):
        decode_config(data, "router.json")


def test_a_file_from_before_services_and_routes_is_still_read() -> None:
    data = (
        b'{"models": [{"name": "m"}], "endpoints": [{"id": "a", "url": "http://h:1", "models": ["m"]}], "version": 1}'
    )

    config = decode_config(data)

    assert (config.services, config.routes) == ([], [])
    assert (config.endpoints[0].pod_name, config.endpoints[0].service, config.endpoints[0].revision) == ("a", "", "")


def test_services_and_routes_are_read_as_they_were_written() -> None:
    config = msgspec.structs.replace(CONFIG, services=[SPLIT], routes=[ROUTE])

    assert decode_config(encode_config(config)) == config


def test_shards_become_one_configuration() -> None:
    first = RouterConfig(models=[ModelEntry(name="a", service="x/a")], endpoints=[], services=[SPLIT])
    second = RouterConfig(models=[ModelEntry(name="b", service="x/b")], endpoints=[ENDPOINT], routes=[ROUTE])

    merged = merge_shards([first, second])

    assert [model.name for model in merged.models] == ["a", "b"]
    assert (merged.endpoints, merged.services, merged.routes) == ([ENDPOINT], [SPLIT], [ROUTE])
    assert merge_shards([]) == RouterConfig(models=[], endpoints=[])


def test_an_entry_on_its_way_from_shard_to_shard_counts_once_and_a_model_before_a_route() -> None:
    old = RouterConfig(models=[ModelEntry(name="a", service="x/a")], endpoints=[], services=[SPLIT], routes=[ROUTE])
    moved = ServiceEntry(id=SPLIT.id, weights={"r2": 100})
    new = RouterConfig(
        models=[ModelEntry(name="a", service="y/a"), ModelEntry(name="chat")], endpoints=[], services=[moved]
    )

    merged = merge_shards([old, new])

    assert [(model.name, model.service) for model in merged.models] == [("a", "x/a"), ("chat", "")]
    assert (merged.services, merged.routes) == ([SPLIT], [])
