"""KV events: how a worker tells routers which blocks its prefix cache holds. ZMQ frames and their msgpack payload.

PUB socket, one frame list per batch:   [topic, seq (8 bytes big-endian), payload]
Payload, as vLLM 0.32 emits it:         [ts, [event, ...], data_parallel_rank]        events are maps tagged by "type"
with our fourth element:                [ts, [event, ...], data_parallel_rank, epoch]
Readers of vLLM's form ignore the fourth. `epoch` names one life of an engine: a new epoch means that nothing known of this pod holds.
Sequences count batches of one topic and epoch from 0; batch 0 is `first_batch`, an AllBlocksCleared, so that readers which know no
epochs also forget what a restarted worker had. Load reports (`load_report`) travel on the same socket under their own topic and count.

Replay socket (ROUTER at the worker, DEALER or REQ at the reader):
    request   [start_seq (8 bytes big-endian)]  the batches still kept from start_seq on       [b"snapshot"]  the state now
    reply     [topic, seq, payload] each, then the end marker [topic, seq = -1 (signed), b""]
A snapshot is one batch or more of BlockStored (parents before children), every frame with the sequence of the last batch that it
includes: the reader forgets the pod, applies the snapshot, then live batches with a greater sequence.

Decoding also takes what other engines send: batches of 2 or 3 elements, events as arrays, unknown event types and fields, hashes as
bytes (their last 8 count). Knows nothing of sockets, blocks or indexes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from quire_contract.wire import WireError

MEDIUM_GPU = "GPU"
MEDIUM_CPU = "CPU"
END_SEQ = -1
SNAPSHOT_REQUEST = b"snapshot"
SEQ_SIZE_BYTES = 8
_NUM_FRAMES = 3
_BATCH_MIN, _BATCH_EPOCH = 2, 4

WireHash = Annotated[int, msgspec.Meta(ge=0)]
"""Low 64 bits of a block's digest, unsigned."""


class BlockStored(msgspec.Struct, frozen=True, kw_only=True, tag="BlockStored", omit_defaults=True, gc=False):
    """Consecutive blocks of one chain became shareable."""

    block_hashes: list[WireHash]
    """Parents first."""
    parent_block_hash: WireHash | None
    """Of the block before the first one; None at the start of a prompt."""
    token_ids: list[int]
    """Tokens of all the blocks; empty unless the worker runs with --kv-events-token-ids."""
    block_size: int
    lora_id: int | None
    """Deprecated by vLLM; always None from us."""
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[Any] | None] | None = None
    """Per block; only together with token_ids."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(msgspec.Struct, frozen=True, kw_only=True, tag="BlockRemoved", omit_defaults=True, gc=False):
    """Blocks left the cache."""

    block_hashes: list[WireHash]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, kw_only=True, tag="AllBlocksCleared", omit_defaults=True, gc=False):
    """The cache is empty."""


KVEvent = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, kw_only=True, slots=True)
class KVEventBatch:
    """What changed in one step."""

    ts: float
    """Unix time in seconds."""
    events: Sequence[KVEvent]
    """In order."""
    data_parallel_rank: int | None = 0
    epoch: str | None = None
    """None: the sender is not ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One message of the event or replay socket."""

    topic: str
    seq: int
    payload: bytes

    @property
    def is_end(self) -> bool:
        """Whether this ends a reply on the replay socket."""
        return self.seq == END_SEQ


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayRequest:
    """What a reader asks on the replay socket."""

    route: tuple[bytes, ...]
    """Frames that every reply starts with: the reader's identity, and an empty delimiter if it sent one."""
    start_seq: int | None
    """None: a snapshot."""


def block_stored(
    block_hashes: list[int],
    parent: int | None,
    block_size: int,
    *,
    token_ids: list[int] | None = None,
    adapter: str | None = None,
    medium: str = MEDIUM_GPU,
) -> BlockStored:
    """A BlockStored as our workers send it."""
    return BlockStored(
        block_hashes=block_hashes,
        parent_block_hash=parent,
        token_ids=token_ids or [],
        block_size=block_size,
        lora_id=None,
        medium=medium,
        lora_name=adapter,
    )


def block_removed(block_hashes: list[int], *, medium: str = MEDIUM_GPU) -> BlockRemoved:
    """A BlockRemoved as our workers send it."""
    return BlockRemoved(block_hashes=block_hashes, medium=medium)


def first_batch(ts: float, epoch: str) -> KVEventBatch:
    """Batch 0 of an epoch."""
    return KVEventBatch(ts=ts, events=[AllBlocksCleared()], epoch=epoch)


def kv_topic(pod: str, model: str) -> str:
    """Topic of a pod's KV events; the form that other vendors' routers parse."""
    return f"kv@{pod}@{model}"


def load_topic(pod: str, model: str) -> str:
    """Topic of a pod's load reports."""
    return f"load@{pod}@{model}"


def parse_topic(topic: str) -> tuple[str, str, str]:
    """(kind, pod, model) of "kv@pod@model" or "load@pod@model". A model may contain "@"; a pod may not."""
    kind, _, rest = topic.partition("@")
    pod, separator, model = rest.partition("@")
    if kind not in ("kv", "load") or not separator or not pod:
        raise WireError(f"topic {topic[:200]!r} is neither kv@<pod>@<model> nor load@<pod>@<model>")
    return kind, pod, model


def encode_batch(batch: KVEventBatch) -> bytes:
    """Payload of a batch; without an epoch exactly vLLM 0.32's bytes."""
    fields: list[Any] = [batch.ts, batch.events, batch.data_parallel_rank]
    if batch.epoch is not None:
        fields.append(batch.epoch)
    return msgspec.msgpack.encode(fields)


class _OwnBatch(msgspec.Struct, array_like=True, gc=False):
    """Our workers' form, decoded without detours."""

    ts: float
    events: list[KVEvent]
    data_parallel_rank: int | None
    epoch: str | None = None


_OWN_DECODER = msgspec.msgpack.Decoder(_OwnBatch)


def decode_batch(payload: bytes) -> KVEventBatch:
    """Batch of a payload, ours or another engine's. WireError if it is no batch; unknown events are left out."""
    try:
        own = _OWN_DECODER.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return _decode_foreign(payload)
    return KVEventBatch(ts=own.ts, events=own.events, data_parallel_rank=own.data_parallel_rank, epoch=own.epoch)


def _decode_foreign(payload: bytes) -> KVEventBatch:
    try:
        batch = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"KV event batch is not msgpack: {error}") from None
    if not isinstance(batch, list) or len(batch) < _BATCH_MIN:
        raise WireError("KV event batch is not an array [ts, events, data_parallel_rank, epoch]")
    ts, events, rank, epoch = [*batch, None, None][:_BATCH_EPOCH]
    if isinstance(ts, bool) or not isinstance(ts, int | float):
        raise WireError("KV event batch: ts (element 0) is not a number")
    if not isinstance(events, list):
        raise WireError("KV event batch: events (element 1) is not an array")
    decoded = [_decode_event(event, f"event {index}") for index, event in enumerate(events)]
    return KVEventBatch(
        ts=float(ts),
        events=[event for event in decoded if event is not None],
        data_parallel_rank=rank if isinstance(rank, int) else None,
        epoch=epoch if isinstance(epoch, str) else None,
    )


# Field order of the array form, by event type.
_ARRAY_FIELDS: dict[str, tuple[str, ...]] = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}


def _decode_event(event: Any, where: str) -> KVEvent | None:
    if isinstance(event, list) and event and isinstance(event[0], str):
        kind, fields = event[0], dict(zip(_ARRAY_FIELDS.get(event[0], ()), event[1:], strict=False))
    elif isinstance(event, dict) and isinstance(event.get("type"), str):
        kind, fields = event["type"], event
    else:
        raise WireError(f"KV {where} is neither a map with a type nor an array that starts with one")
    if kind == "BlockStored":
        return _decode_stored(fields, where)
    if kind == "BlockRemoved":
        hashes = _decode_hashes(fields.get("block_hashes"), where)
        return BlockRemoved(
            block_hashes=hashes, medium=_text(fields.get("medium")), group_idx=_int(fields.get("group_idx"))
        )
    return AllBlocksCleared() if kind == "AllBlocksCleared" else None


def _decode_stored(fields: dict[str, Any], where: str) -> BlockStored:
    block_size = fields.get("block_size")
    if not isinstance(block_size, int) or block_size < 1:
        raise WireError(f"KV {where}: block_size is not a positive integer")
    token_ids = fields.get("token_ids") or []
    if not isinstance(token_ids, list) or not all(isinstance(token, int) for token in token_ids):
        raise WireError(f"KV {where}: token_ids is not an array of integers")
    parent = fields.get("parent_block_hash")
    extra_keys = fields.get("extra_keys")
    return BlockStored(
        block_hashes=_decode_hashes(fields.get("block_hashes"), where),
        parent_block_hash=None if parent is None else _decode_hash(parent, where),
        token_ids=token_ids,
        block_size=block_size,
        lora_id=_int(fields.get("lora_id")),
        medium=_text(fields.get("medium")),
        lora_name=_text(fields.get("lora_name")),
        extra_keys=extra_keys if isinstance(extra_keys, list) else None,
        group_idx=_int(fields.get("group_idx")),
        kv_cache_spec_kind=_text(fields.get("kv_cache_spec_kind")),
        kv_cache_spec_sliding_window=_int(fields.get("kv_cache_spec_sliding_window")),
    )


def _decode_hashes(values: Any, where: str) -> list[int]:
    if not isinstance(values, list):
        raise WireError(f"KV {where}: block_hashes is not an array")
    return [_decode_hash(value, where) for value in values]


def _decode_hash(value: Any, where: str) -> int:
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-8:], "big")
    if isinstance(value, int) and not isinstance(value, bool):
        return value & 0xFFFF_FFFF_FFFF_FFFF  # some engines send the same 64 bits signed
    raise WireError(f"KV {where}: a block hash is neither an integer nor bytes")


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def encode_frames(topic: str, seq: int, payload: bytes) -> list[bytes]:
    """Frames of one message of the event socket (a batch or a load report)."""
    return [topic.encode(), seq.to_bytes(SEQ_SIZE_BYTES, "big", signed=True), payload]


def decode_frames(frames: Sequence[bytes]) -> Frame:
    """One message of the event socket, or of the replay socket (its leading empty delimiter is dropped)."""
    parts = list(frames[1:]) if len(frames) > _NUM_FRAMES and not frames[0] else list(frames)
    if len(parts) != _NUM_FRAMES:
        raise WireError(f"KV message has {len(frames)} frames, not topic, sequence and payload")
    topic, seq, payload = parts
    if len(seq) != SEQ_SIZE_BYTES:
        raise WireError(f"KV message: the sequence frame has {len(seq)} bytes, not {SEQ_SIZE_BYTES}")
    try:
        name = topic.decode()
    except UnicodeDecodeError:
        raise WireError("KV message: the topic is not UTF-8") from None
    return Frame(topic=name, seq=int.from_bytes(seq, "big", signed=True), payload=payload)


def replay_request(start_seq: int) -> list[bytes]:
    """What a DEALER sends to get the batches from `start_seq` on."""
    return [b"", start_seq.to_bytes(SEQ_SIZE_BYTES, "big")]


def snapshot_request() -> list[bytes]:
    """What a DEALER sends to get the state."""
    return [b"", SNAPSHOT_REQUEST]


def decode_replay_request(frames: Sequence[bytes]) -> ReplayRequest:
    """What the ROUTER socket received, identity first."""
    if len(frames) < _BATCH_MIN:
        raise WireError("replay request has no body")
    route, body = tuple(frames[:-1]), frames[-1]
    if body == SNAPSHOT_REQUEST:  # as long as a sequence number, so it is looked at first
        return ReplayRequest(route=route, start_seq=None)
    if len(body) != SEQ_SIZE_BYTES:
        raise WireError(f"replay request of {len(body)} bytes is neither a sequence number (8 bytes) nor 'snapshot'")
    return ReplayRequest(route=route, start_seq=int.from_bytes(body, "big"))


def reply_frames(request: ReplayRequest, topic: str, seq: int, payload: bytes) -> list[bytes]:
    """One batch of the answer to `request`."""
    return [*request.route, *encode_frames(topic, seq, payload)]


def reply_end(request: ReplayRequest, topic: str) -> list[bytes]:
    """The end marker of the answer to `request`."""
    return [*request.route, *encode_frames(topic, END_SEQ, b"")]
