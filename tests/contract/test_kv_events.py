"""KV events look exactly as vLLM 0.32's on the wire, and what other engines send can be read."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.kv_events import (
    END_SEQ,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    block_removed,
    block_stored,
    decode_batch,
    decode_frames,
    decode_replay_request,
    encode_batch,
    encode_frames,
    first_batch,
    kv_topic,
    load_topic,
    parse_topic,
    replay_request,
    reply_end,
    reply_frames,
    snapshot_request,
)
from quire_contract.wire import WireError

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=4)
EVENTS = st.lists(
    st.builds(
        block_stored, HASHES, st.none() | st.integers(0, 2**64 - 1), st.integers(1, 64), adapter=st.none() | st.text()
    )
    | st.builds(block_removed, HASHES)
    | st.just(AllBlocksCleared())
)


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_a_batch_without_epoch_is_vllms_byte_for_byte() -> None:
    batch = KVEventBatch(ts=1.0, events=[block_stored([2**63 + 5], None, 16, token_ids=[3, 4])])
    map_of_vllm = {
        "type": "BlockStored",
        "block_hashes": [2**63 + 5],
        "parent_block_hash": None,
        "token_ids": [3, 4],
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }

    payload = encode_batch(batch)

    assert payload == pack([1.0, [map_of_vllm], 0])


def test_the_bytes_are_pinned() -> None:
    batch = KVEventBatch(ts=1.0, events=[block_removed([1]), AllBlocksCleared()], epoch="e")

    payload = encode_batch(batch)

    assert payload == (
        b"\x94\xcb?\xf0\x00\x00\x00\x00\x00\x00\x92\x83\xa4type\xacBlockRemoved\xacblock_hashes\x91\x01\xa6medium\xa3GPU"
        b"\x81\xa4type\xb0AllBlocksCleared\x00\xa1e"
    )


def test_extra_fields_appear_only_when_set() -> None:
    stored = msgspec.structs.replace(block_stored([1], None, 16), group_idx=2, kv_cache_spec_sliding_window=4096)

    event = msgspec.msgpack.decode(encode_batch(KVEventBatch(ts=0.0, events=[stored])))[1][0]

    assert list(event)[8:] == ["group_idx", "kv_cache_spec_sliding_window"]


@given(events=EVENTS, epoch=st.none() | st.text(min_size=1), rank=st.none() | st.integers(0, 7))
def test_what_is_encoded_is_decoded(events: list[Any], epoch: str | None, rank: int | None) -> None:
    batch = KVEventBatch(ts=12.5, events=events, data_parallel_rank=rank, epoch=epoch)

    assert decode_batch(encode_batch(batch)) == batch


def test_a_batch_of_two_elements_is_read() -> None:
    batch = decode_batch(pack([5, [["AllBlocksCleared"]]]))

    assert batch == KVEventBatch(ts=5.0, events=[AllBlocksCleared()], data_parallel_rank=None, epoch=None)


def test_the_array_form_of_older_engines_is_read() -> None:
    stored = ["BlockStored", [1, 2], 7, [10, 11], 2, None]
    removed = ["BlockRemoved", [3]]

    batch = decode_batch(pack([1.0, [stored, removed], None]))

    first, second = batch.events
    assert isinstance(first, BlockStored)
    assert (first.block_hashes, first.parent_block_hash, first.token_ids, first.block_size) == ([1, 2], 7, [10, 11], 2)
    assert second == BlockRemoved(block_hashes=[3], medium=None)


def test_hashes_as_bytes_count_by_their_last_eight() -> None:
    digest = bytes(range(32))
    event = {"type": "BlockRemoved", "block_hashes": [digest, b"\x01", -1], "medium": "GPU"}

    batch = decode_batch(pack([1.0, [event], 0]))

    assert batch.events == [block_removed([int.from_bytes(digest[-8:], "big"), 1, 2**64 - 1])]


def test_unknown_events_and_fields_are_left_out() -> None:
    unknown = {"type": "BlockMoved", "block_hashes": "?"}
    removed = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "locality": "local", "session_id": 5}

    batch = decode_batch(pack([1.0, [unknown, removed, ["Strange", 1]], 0, "e", "fifth"]))

    assert batch.events == [block_removed([1])]
    assert batch.epoch == "e"


def test_a_stored_event_without_newer_fields_is_read() -> None:
    event = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": b"\x00" * 31 + b"\x09", "block_size": 16}

    batch = decode_batch(pack([1.0, [event], 0]))

    assert batch.events == [msgspec.structs.replace(block_stored([1], 9, 16), medium=None)]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (pack({"ts": 1}), "not an array"),
        (pack([1.0]), "not an array"),
        (pack(["now", []]), "ts"),
        (pack([True, []]), "ts"),
        (pack([1.0, 5]), "events"),
        (pack([1.0, [5]]), "event 0"),
        (pack([1.0, [["BlockStored", [1], None, [], 0]]]), "block_size"),
        (pack([1.0, [{"type": "BlockRemoved", "block_hashes": 5}]]), "block_hashes"),
        (pack([1.0, [{"type": "BlockRemoved", "block_hashes": [1.5]}]]), "block hash"),
        (pack([1.0, [["BlockStored", [1], None, ["x"], 16]]]), "token_ids"),
    ],
)
def test_a_wrong_batch_raises_one_error_that_says_where(payload: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_batch(payload)


@given(payload=st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(payload: bytes) -> None:
    try:
        decode_batch(payload)
    except WireError as error:
        assert "KV" in str(error)


def test_frames_carry_topic_sequence_and_payload() -> None:
    frames = encode_frames(kv_topic("pod-1", "m"), 258, b"data")

    frame = decode_frames(frames)

    assert frames == [b"kv@pod-1@m", b"\x00\x00\x00\x00\x00\x00\x01\x02", b"data"]
    assert (frame.topic, frame.seq, frame.payload, frame.is_end) == ("kv@pod-1@m", 258, b"data", False)


@pytest.mark.parametrize("frames", [[], [b"t", b"12345678"], [b"t", b"1", b"p"], [b"\xff", b"12345678", b"p"]])
def test_wrong_frames_raise_the_same_error(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode_frames(frames)


def test_topics_name_pod_and_model() -> None:
    topics = [kv_topic("pod-1", "org/m@v2"), load_topic("pod-1", "m")]

    assert [parse_topic(topic) for topic in topics] == [("kv", "pod-1", "org/m@v2"), ("load", "pod-1", "m")]
    with pytest.raises(WireError, match="neither"):
        parse_topic("other@pod@m")


def test_an_epoch_starts_with_everything_cleared() -> None:
    batch = first_batch(3.0, "epoch-1")

    assert batch == KVEventBatch(ts=3.0, events=[AllBlocksCleared()], epoch="epoch-1")


def test_a_replay_is_asked_for_and_answered_over_a_router_socket() -> None:
    received = decode_replay_request([b"id", *replay_request(17)])

    reply, end = reply_frames(received, "kv@p@m", 17, b"batch"), reply_end(received, "kv@p@m")

    assert received.start_seq == 17
    assert reply[:2] == [b"id", b""]
    assert decode_frames(reply[1:]).payload == b"batch"
    assert decode_frames(end[1:]).seq == END_SEQ
    assert decode_frames(end[1:]).is_end


def test_a_snapshot_request_is_no_sequence_number() -> None:
    received = decode_replay_request([b"id", *snapshot_request()])

    assert received.start_seq is None


def test_a_reader_without_delimiter_is_answered_without() -> None:
    received = decode_replay_request([b"id", (3).to_bytes(8, "big")])

    assert reply_frames(received, "t", 3, b"")[:2] == [b"id", b"t"]


@pytest.mark.parametrize("frames", [[], [b"id"], [b"id", b"", b"123"]])
def test_a_wrong_replay_request_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError, match="replay request"):
        decode_replay_request(frames)
