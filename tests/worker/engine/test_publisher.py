"""The publisher over real sockets."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from quire_contract.block_hash import hash_blocks, wire_hashes
from quire_contract.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Frame,
    decode_batch,
    decode_frames,
    replay_request,
    snapshot_request,
)
from quire_contract.load_report import LoadReport, decode_report
from quire_contract.trust import Trust
from quire_worker.engine.publisher import Publisher, PublisherSettings, _Inbox
from quire_worker.errors import ConfigError, PublisherError
from quire_worker.kv.events import BlockEvicted, BlocksStored

BLOCK_SIZE = 4
DIGESTS = hash_blocks(list(range(40)), BLOCK_SIZE)
TIMEOUT_MS = 120_000


def stored(first: int, last: int) -> BlocksStored:
    return BlocksStored(
        0, DIGESTS[first:last], DIGESTS[first - 1] if first else None, list(range(first * 4, last * 4)), None
    )


def report(**fields: Any) -> LoadReport:
    values = {"running": 1, "waiting": 2, "free_blocks": 3, "total_blocks": 9, "uncached_tokens": 5, **fields}
    return LoadReport(pod="pod", model="org/m", epoch="e1", ts=0.0, kv_seq=0, **values)


class Reader:
    """What a router does with the two sockets."""

    def __init__(self, context: zmq.Context[Any], publisher: Publisher, trust: Trust | None = None) -> None:
        self._sub, self._dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        for socket, endpoint in ((self._sub, publisher.events_endpoint), (self._dealer, publisher.replay_endpoint)):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVTIMEO, TIMEOUT_MS)
            if trust is not None:
                trust.secure_client(socket)
            if socket is self._sub:
                socket.set(zmq.SUBSCRIBE, b"")
            socket.connect(endpoint)

    def receive(self, kind: str) -> Frame:
        """The next message under a topic that begins with `kind`."""
        while True:
            frame = decode_frames(self._sub.recv_multipart())
            if frame.topic.startswith(kind):
                return frame

    def ask(self, request: list[bytes]) -> list[Frame]:
        """All frames of the answer but the end marker."""
        self._dealer.send_multipart(request)
        frames = []
        while not (frame := decode_frames(self._dealer.recv_multipart())).is_end:
            frames.append(frame)
        return frames

    def wait_for_subscription(self, publisher: Publisher) -> None:
        """Load reports are repeated until one arrives: then the subscription stands."""
        for _ in range(TIMEOUT_MS // 50):
            publisher.offer_load(report())
            if self._sub.poll(50):
                self._sub.recv_multipart()
                return
        raise AssertionError("the subscription does not come about")

    def close(self) -> None:
        self._sub.close()
        self._dealer.close()


Start = Callable[..., tuple[Publisher, Reader]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Publishers and readers, closed at the end."""
    context: zmq.Context[Any] = zmq.Context()
    opened: list[Any] = []

    def open_both(
        epoch: str = "e1", trust: Trust | None = None, reader_trust: Trust | None = None
    ) -> tuple[Publisher, Reader]:
        settings = PublisherSettings(
            pod="pod",
            model="org/m",
            epoch=epoch,
            block_size=BLOCK_SIZE,
            events_endpoint="tcp://127.0.0.1:0",
            replay_endpoint="tcp://127.0.0.1:0",
        )
        publisher = Publisher(settings, trust, lambda: 1000.0)
        publisher.start()
        reader = Reader(context, publisher, reader_trust or trust)
        opened.extend((reader, publisher))
        return publisher, reader

    yield open_both
    for part in opened:
        part.close()
    context.term()


def test_events_arrive_under_the_pods_topic_with_sequence_and_epoch(start: Start) -> None:
    publisher, reader = start()
    reader.wait_for_subscription(publisher)

    publisher.offer_events([stored(0, 2)])
    frame = reader.receive("kv@")

    batch = decode_batch(frame.payload)
    assert (frame.topic, frame.seq, batch.epoch, batch.ts) == ("kv@pod@org/m", 1, "e1", 1000.0)
    (event,) = batch.events
    assert isinstance(event, BlockStored)
    assert event.block_hashes == wire_hashes(DIGESTS[:2])


def test_a_load_report_tells_the_last_event_sequence(start: Start) -> None:
    publisher, reader = start()
    reader.wait_for_subscription(publisher)
    publisher.offer_events([stored(0, 2)])
    reader.receive("kv@")

    publisher.offer_load(report(running=7))
    loads = [decode_report(reader.receive("load@").payload)]
    while loads[-1].running != 7:
        loads.append(decode_report(reader.receive("load@").payload))

    assert (loads[-1].kv_seq, loads[-1].ts, loads[-1].epoch) == (1, 1000.0, "e1")


def test_a_reader_that_missed_batches_gets_them_by_replay(start: Start) -> None:
    publisher, reader = start()
    reader.wait_for_subscription(publisher)
    for index in range(3):
        publisher.offer_events([stored(index, index + 1)])
        reader.receive("kv@")

    frames = reader.ask(replay_request(2))

    assert [frame.seq for frame in frames] == [2, 3]
    (event,) = decode_batch(frames[1].payload).events
    assert isinstance(event, BlockStored)
    assert event.block_hashes == wire_hashes(DIGESTS[2:3])


def test_replay_from_the_start_begins_with_everything_cleared(start: Start) -> None:
    _, reader = start()

    (frame,) = reader.ask(replay_request(0))

    assert decode_batch(frame.payload).events == [AllBlocksCleared()]


def test_a_snapshot_equals_the_state_and_carries_the_last_sequence(start: Start) -> None:
    publisher, reader = start()
    reader.wait_for_subscription(publisher)
    publisher.offer_events([stored(0, 4), BlockEvicted(0, DIGESTS[3]), stored(4, 6)])
    reader.receive("kv@")

    frames = reader.ask(snapshot_request())

    hashes = [h for frame in frames for event in decode_batch(frame.payload).events for h in event.block_hashes]  # type: ignore[union-attr]
    assert sorted(hashes) == sorted(wire_hashes([DIGESTS[i] for i in (0, 1, 2, 4, 5)]))
    assert {frame.seq for frame in frames} == {1}


def test_a_malformed_request_is_ignored_and_the_next_one_answered(start: Start) -> None:
    _, reader = start()

    reader._dealer.send_multipart([b"", b"nonsense request"])

    assert len(reader.ask(snapshot_request())) == 1


def test_a_restarted_publisher_has_another_epoch_and_begins_at_zero(start: Start) -> None:
    first, _ = start("e1")
    first.offer_events([stored(0, 2)])

    _, reader = start("e2")
    (frame,) = reader.ask(replay_request(0))

    assert (frame.seq, decode_batch(frame.payload).epoch) == (0, "e2")


def test_holders_of_the_key_pair_are_served_over_curve(start: Start) -> None:
    trust = Trust.generate()
    publisher, reader = start(trust=trust)
    reader.wait_for_subscription(publisher)

    publisher.offer_events([BlockEvicted(0, DIGESTS[0])])

    (event,) = decode_batch(reader.receive("kv@").payload).events
    assert event == BlockRemoved(block_hashes=wire_hashes(DIGESTS[:1]), medium="GPU")


def test_strangers_get_nothing_over_curve(start: Start) -> None:
    trust, other = Trust.generate(), Trust.generate()
    stranger = Trust(other.token, other.curve_public, other.curve_secret)
    _, reader = start(trust=trust, reader_trust=stranger)
    reader._dealer.set(zmq.RCVTIMEO, 300)

    with pytest.raises(zmq.Again):
        reader.ask(snapshot_request())


def test_a_port_in_use_names_the_flag(start: Start, tmp_path: Path) -> None:
    publisher, _ = start()
    settings = PublisherSettings(
        pod="pod", model="m", epoch="e", block_size=4, events_endpoint=publisher.events_endpoint, replay_endpoint=None
    )

    with pytest.raises(ConfigError, match=r"--kv-events-endpoint.*in use"):
        Publisher(settings, None, lambda: 0.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_engine_hears_that_the_publisher_died() -> None:
    settings = PublisherSettings(
        pod="pod", model="m", epoch="e", block_size=4, events_endpoint="tcp://127.0.0.1:0", replay_endpoint=None
    )
    publisher = Publisher(settings, None, lambda: {}["no time"])
    publisher.start()
    publisher._thread.join(TIMEOUT_MS / 1000)

    with pytest.raises(PublisherError, match="must restart"):
        publisher.offer_load(report())
    publisher.close()


def test_events_that_wait_are_bounded_by_the_number_of_blocks() -> None:
    inbox = _Inbox(BLOCK_SIZE)

    for _ in range(15_000):
        inbox.add_events([stored(0, 1), BlockEvicted(0, DIGESTS[0]), stored(1, 2)])
    events, _ = inbox.take()

    assert len(events) <= 20_000
