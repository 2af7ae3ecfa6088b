"""How the routers' configuration is cut into shards."""

from quire_contract.router_config import decode_config, merge_shards
from quire_operator.router_shards import service_entry, shard_texts


def entries(count: int, extra: int = 0):
    return [
        service_entry("team", f"s{i}", [f"name-{i}", f"alias-{i}"], {"r1": 90, "r2": 10}) for i in range(count + extra)
    ]


def configs(texts):
    return [decode_config(text.encode()) for text in texts]


def test_all_entries_are_in_the_shards_and_each_fits() -> None:
    texts = shard_texts(entries(300), max_bytes=8192)

    assert len(texts) > 1
    assert len(texts) & (len(texts) - 1) == 0
    assert max(len(text.encode()) for text in texts) <= 8192
    merged = merge_shards(configs(texts))
    assert len(merged.models) == 600
    assert {service.id for service in merged.services} == {f"team/s{i}" for i in range(300)}
    assert merged.services[0].weights == {"r1": 90, "r2": 10}


def test_a_new_service_changes_one_shard_only() -> None:
    before, after = shard_texts(entries(300), 16384), shard_texts(entries(300, 1), 16384)

    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_without_services_there_is_one_empty_shard() -> None:
    (config,) = configs(shard_texts([]))

    assert config.models == []
