"""Batches and snapshots of KV events."""

import pytest

from quire_contract.block_hash import hash_blocks, wire_hashes
from quire_contract.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, decode_batch
from quire_worker.engine.event_log import EventLog, net_effect
from quire_worker.kv.events import BlockEvicted, BlocksStored, CacheEvent

BLOCK_SIZE = 4
DIGESTS = hash_blocks(list(range(24)), BLOCK_SIZE)


def stored(first: int, last: int, group: int = 0) -> BlocksStored:
    parent = DIGESTS[first - 1] if first else None
    return BlocksStored(group, DIGESTS[first:last], parent, list(range(first * 4, last * 4)), None)


def evicted(*indices: int) -> list[CacheEvent]:
    return [BlockEvicted(0, DIGESTS[index]) for index in indices]


def log_of(*events: CacheEvent, with_token_ids: bool = False) -> EventLog:
    log = EventLog("epoch", BLOCK_SIZE, with_token_ids=with_token_ids)
    log.start(0.0)
    log.append(events, 1.0)
    return log


def held(events: list[KVEvent]) -> set[int]:
    """What a reader holds after these events."""
    hashes: set[int] = set()
    for event in events:
        if isinstance(event, BlockStored):
            hashes |= set(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            hashes -= set(event.block_hashes)
        else:
            hashes.clear()
    return hashes


def snapshot_events(log: EventLog) -> list[KVEvent]:
    return [event for payload in log.snapshot(2.0) for event in decode_batch(payload).events]


def test_an_epoch_begins_with_everything_cleared() -> None:
    log = EventLog("epoch", BLOCK_SIZE)

    seq, payload = log.start(5.0)

    assert seq == 0
    assert decode_batch(payload).events == [AllBlocksCleared()]
    assert decode_batch(payload).epoch == "epoch"


def test_events_keep_their_order_and_evictions_in_a_row_are_one_event() -> None:
    log = EventLog("epoch", BLOCK_SIZE)

    _, payload = log.append([*evicted(4, 5), stored(0, 2), *evicted(1)], 1.0)

    first, second, third = decode_batch(payload).events
    assert first == BlockRemoved(block_hashes=wire_hashes(DIGESTS[4:6]), medium="GPU")
    assert isinstance(second, BlockStored)
    assert (second.block_hashes, second.parent_block_hash) == (wire_hashes(DIGESTS[:2]), None)
    assert third == BlockRemoved(block_hashes=wire_hashes(DIGESTS[1:2]), medium="GPU")


@pytest.mark.parametrize("with_token_ids", [True, False])
def test_token_ids_are_told_only_on_request(with_token_ids: bool) -> None:
    log = log_of(stored(0, 2), with_token_ids=with_token_ids)

    (event,) = snapshot_events(log)

    assert isinstance(event, BlockStored)
    assert event.token_ids == (list(range(8)) if with_token_ids else [])


def test_a_snapshot_holds_what_the_batches_add_up_to() -> None:
    log = log_of(stored(0, 5), *evicted(4, 1), stored(4, 5))

    assert held(snapshot_events(log)) == set(wire_hashes([DIGESTS[i] for i in (0, 2, 3, 4)]))


def test_a_snapshot_gives_parents_before_children_even_if_they_were_stored_later() -> None:
    log = log_of(stored(0, 4), *evicted(0), stored(0, 1))

    order = [h for event in snapshot_events(log) if isinstance(event, BlockStored) for h in event.block_hashes]

    assert order == wire_hashes(DIGESTS[:4])


def test_the_snapshot_of_an_empty_cache_is_one_empty_batch() -> None:
    log = EventLog("epoch", BLOCK_SIZE)
    log.start(0.0)

    payloads = log.snapshot(1.0)

    assert [list(decode_batch(payload).events) for payload in payloads] == [[]]


def test_replay_gives_batches_from_a_sequence_on() -> None:
    log = log_of(stored(0, 1))
    for index in range(1, 4):
        log.append([stored(index, index + 1)], 1.0)

    assert [seq for seq, _ in log.since(2)] == [2, 3, 4]
    assert [seq for seq, _ in log.since(0)] == [0, 1, 2, 3, 4]
    assert log.since(99) == []


def test_groups_other_than_the_first_are_named() -> None:
    log = EventLog("epoch", BLOCK_SIZE)

    _, payload = log.append([stored(0, 1), stored(0, 1, group=1)], 1.0)

    assert [event.group_idx for event in decode_batch(payload).events if isinstance(event, BlockStored)] == [None, 1]


def test_the_net_effect_of_many_events_has_their_outcome() -> None:
    events = [stored(0, 4), *evicted(3, 2), stored(2, 3), *evicted(0), stored(4, 6), *evicted(5)]

    net = net_effect(events, BLOCK_SIZE)

    assert held(snapshot_events(log_of(*net))) == held(snapshot_events(log_of(*events)))
    assert net_effect(events * 50, BLOCK_SIZE) == net
