"""The subscriber against a real publisher socket that loses messages, restarts and is asked for snapshots."""

import asyncio
import contextlib
import time

import pytest
import zmq
import zmq.asyncio
from cluster.processes import free_ports

from quire_contract.kv_events import (
    AllBlocksCleared,
    KVEventBatch,
    block_removed,
    block_stored,
    decode_replay_request,
    encode_batch,
    encode_frames,
    first_batch,
    kv_topic,
    load_topic,
    reply_end,
    reply_frames,
)
from quire_contract.load_report import LoadReport, encode_report
from quire_contract.router_config import EndpointEntry
from quire_contract.trust import Trust
from quire_router.endpoints import Endpoint
from quire_router.kv_follower import KvFollower
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.kv_subscriber import KvSubscriber
from quire_router.metrics import RouterMetrics
from quire_router.revision_stats import RevisionCounts


class Publisher:
    """A worker's two event sockets. `held` is what it truly caches."""

    def __init__(self, epoch, ports=(0, 0), trust=None):
        self.epoch, self.trust, self.seq, self.held = epoch, trust, -1, []
        self.num_snapshots = 0
        self.gives_snapshots = True
        self.context = zmq.asyncio.Context()
        self.events, self.replay = self._bind(zmq.PUB, ports[0]), self._bind(zmq.ROUTER, ports[1])
        self.addresses = [s.getsockopt(zmq.LAST_ENDPOINT).decode() for s in (self.events, self.replay)]
        self.ports = [int(address.rsplit(":", 1)[1]) for address in self.addresses]
        self.task = asyncio.create_task(self._serve())

    def _bind(self, kind, port):
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        if self.trust is not None:
            self.trust.secure_server(socket)
        socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        return socket

    async def start_epoch(self):
        await self._send(first_batch(time.time(), self.epoch))

    async def store(self, *hashes, lose=False):
        self.held += hashes
        await self._send(self._batch(block_stored(list(hashes), None, 16)), lose)

    async def remove(self, *hashes, lose=False):
        self.held = [h for h in self.held if h not in hashes]
        await self._send(self._batch(block_removed(list(hashes))), lose)

    async def clear(self):
        self.held = []
        await self._send(self._batch(AllBlocksCleared()))

    async def report(self, **fields):
        values = {"running": 0, "waiting": 0, "free_blocks": 9, "total_blocks": 9, "uncached_tokens": 0, **fields}
        report = LoadReport(pod="a", model="m", epoch=self.epoch, ts=time.time(), kv_seq=self.seq, **values)
        await self.events.send_multipart(encode_frames(load_topic("a", "m"), 0, encode_report(report)))

    def _batch(self, *events):
        return KVEventBatch(ts=time.time(), events=events, epoch=self.epoch)

    async def _send(self, batch, lose=False):
        self.seq += 1
        if not lose:
            await self.events.send_multipart(encode_frames(kv_topic("a", "m"), self.seq, encode_batch(batch)))

    async def _serve(self):
        while True:
            request = decode_replay_request(await self.replay.recv_multipart())
            if request.start_seq is None and self.gives_snapshots:
                self.num_snapshots += 1
                payload = encode_batch(self._batch(block_stored(list(self.held), None, 16)))
                await self.replay.send_multipart(reply_frames(request, kv_topic("a", "m"), self.seq, payload))
            await self.replay.send_multipart(reply_end(request, kv_topic("a", "m")))

    async def close(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.context.destroy(linger=0)


class Follow:
    """A subscriber at work."""

    def __init__(self, publisher, trust=None, **fields):
        events, replay = publisher.addresses
        values = {"id": "a", "url": "http://a:1", "models": ["m"], **fields}
        entry = EndpointEntry(**values, events=events, replay=replay)
        self.endpoint = Endpoint(entry, RevisionCounts())
        self.index, self.sent, self.metrics = KvIndex(), SentIndex(), RouterMetrics()
        self.suspected = []
        self.endpoint.on_suspect = lambda: self.suspected.append(time.monotonic())
        self.follower = KvFollower(self.endpoint, self.index, self.sent, self.metrics)
        self.context = zmq.asyncio.Context()
        subscriber = KvSubscriber(self.endpoint, self.follower, self.context, trust=trust, clock=time.monotonic)
        self.task = asyncio.create_task(subscriber.run())

    def in_step_with(self, *hashes):
        return self.endpoint.synced and self.index._blocks.get(self.endpoint.id, set()) == set(hashes)

    def count(self, name):
        return self.metrics.registry.get_sample_value(name)

    async def close(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.context.destroy(linger=0)


@pytest.fixture
async def opened():
    async with contextlib.AsyncExitStack() as stack:

        def keep(thing):
            stack.push_async_callback(thing.close)
            return thing

        yield keep


async def test_a_late_subscriber_is_right_by_a_snapshot_and_follows_from_there(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    await worker.store(1, 2, 3)

    follow = opened(Follow(worker))
    await until(lambda: follow.in_step_with(1, 2, 3))
    await worker.store(4)
    await worker.remove(2)
    await until(lambda: follow.in_step_with(1, 3, 4))
    await worker.clear()
    await until(follow.in_step_with)

    assert follow.count("quire_router_kv_gaps_total") == 0


async def test_an_endpoint_whose_id_is_not_its_pods_name_is_known_by_the_pods_topics(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()

    follow = opened(Follow(worker, id="elsewhere/a", pod="a"))
    await worker.store(1)

    await until(lambda: follow.in_step_with(1))


async def test_a_lost_batch_shows_as_a_gap_and_is_mended_by_a_snapshot(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    follow = opened(Follow(worker))
    await until(lambda: follow.endpoint.synced)

    await worker.store(1, 2)
    await worker.remove(1, lose=True)
    await worker.store(3)
    await until(lambda: follow.in_step_with(2, 3))

    assert follow.count("quire_router_kv_gaps_total") == 1


async def test_a_lost_last_batch_shows_in_the_next_load_report(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    follow = opened(Follow(worker))
    await until(lambda: follow.endpoint.synced)

    await worker.store(1)
    await until(lambda: follow.in_step_with(1))
    await worker.remove(1, lose=True)
    await worker.report(running=3)
    await until(follow.in_step_with)

    assert follow.endpoint.report.running == 3
    assert follow.count("quire_router_kv_gaps_total") == 1


async def test_a_restarted_worker_gets_no_credit_for_its_former_cache(opened, until):
    worker = opened(Publisher("e1", free_ports(2)))
    await worker.start_epoch()
    await worker.store(1, 2, 3)
    follow = opened(Follow(worker))
    await until(lambda: follow.in_step_with(1, 2, 3))
    follow.sent.record("a", [1, 2, 3], time.monotonic())

    await worker.close()
    await until(lambda: not follow.endpoint.synced)
    credit = follow.index.num_blocks("a") + follow.sent.num_blocks("a")
    again = opened(Publisher("e2", worker.ports))
    await again.start_epoch()
    await again.store(7)
    await until(lambda: follow.in_step_with(7))

    assert credit == 0
    assert follow.suspected
    assert follow.follower.epoch == "e2"


async def test_a_snapshot_of_a_new_life_also_tells_that_the_worker_restarted(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    follow = opened(Follow(worker))
    await until(lambda: follow.endpoint.synced)
    follow.endpoint.digest = "of the former life"

    follow.follower.connected()
    follow.follower.begin_snapshot()
    follow.follower.end_snapshot(5, "e2")

    assert (follow.follower.epoch, follow.endpoint.digest) == ("e2", None)


async def test_a_new_epoch_on_a_living_connection_also_clears(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    await worker.store(1, 2, 3)
    follow = opened(Follow(worker))
    await until(lambda: follow.in_step_with(1, 2, 3))
    follow.endpoint.digest = "of the former life"

    worker.epoch, worker.held, worker.seq = "e2", [9], 40
    await worker.report()
    await until(lambda: follow.in_step_with(9))

    assert follow.endpoint.digest is None


async def test_events_that_arrive_while_a_snapshot_is_on_its_way_are_applied_after_it(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    follow = opened(Follow(worker))
    await until(lambda: follow.endpoint.synced)
    await worker.store(1)
    await until(lambda: follow.in_step_with(1))

    follow.follower.begin_snapshot()
    follow.follower.take_batch(2, worker._batch(block_stored([2], None, 16)))
    follow.follower.take_batch(3, worker._batch(block_stored([3], None, 16)))
    follow.follower.take_snapshot_part(worker._batch(block_stored([1, 2], None, 16)))
    follow.follower.end_snapshot(2, "e1")

    assert follow.in_step_with(1, 2, 3)


async def test_a_snapshot_that_outlives_its_connection_counts_for_nothing(opened, until):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    follow = opened(Follow(worker))
    await until(lambda: follow.endpoint.synced)

    follow.follower.begin_snapshot()
    follow.follower.disconnected()
    follow.follower.take_snapshot_part(worker._batch(block_stored([1, 2], None, 16)))
    follow.follower.end_snapshot(2, "e1")

    assert not follow.endpoint.synced
    assert follow.index.num_blocks(follow.endpoint.id) == 0


async def test_a_worker_that_gives_no_snapshots_is_followed_from_what_comes(opened, until):
    worker = opened(Publisher(None))
    worker.gives_snapshots = False
    worker.seq = 9
    follow = opened(Follow(worker))
    await until(lambda: follow.follower._gives_snapshots is False)

    await worker.store(1)
    await worker.store(2)
    await until(lambda: follow.in_step_with(1, 2))


async def test_the_sockets_are_encrypted_with_the_releases_keys(opened, until):
    trust = Trust.generate()
    worker = opened(Publisher("e1", trust=trust))
    await worker.start_epoch()
    await worker.store(1)

    with_key = opened(Follow(worker, trust))
    with_wrong_key = opened(Follow(worker, Trust.generate()))
    await until(lambda: with_key.in_step_with(1))

    assert not with_wrong_key.endpoint.synced


async def test_events_of_another_pod_at_the_address_are_not_credited(opened, until, logged):
    worker = opened(Publisher("e1"))
    await worker.start_epoch()
    follow = opened(Follow(worker))
    await until(lambda: follow.endpoint.synced)

    frames = encode_frames(kv_topic("other", "m"), 0, encode_batch(first_batch(0.0, "e9")))
    await worker.events.send_multipart(frames)
    await worker.events.send_multipart([b"kv@a@m", b"short", b"x"])
    await worker.store(5)
    await until(lambda: follow.in_step_with(5))

    assert "pod 'other' answers at this address" in logged()
    assert "the sequence frame has 5 bytes" in logged()
