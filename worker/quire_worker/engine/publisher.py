"""Publishes KV events and load reports, and answers replay and snapshot requests, in a thread of its own.

The engine hands over what happened and goes on; the thread owns both sockets and everything that is sent. Knows the contract's frames; not
the scheduler.

    engine thread   offer_events, offer_load  ──> inbox (bounded by the number of blocks) ──> publisher thread ──> PUB    events, load
                                                                                                               <─> ROUTER replay, snapshot
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from quire_contract.kv_events import (
    ReplayRequest,
    decode_replay_request,
    encode_frames,
    kv_topic,
    load_topic,
    reply_end,
    reply_frames,
)
from quire_contract.load_report import MAX_INTERVAL_S, LoadReport, encode_report
from quire_contract.trust import Trust
from quire_contract.wire import WireError
from quire_worker.engine.event_log import EventLog, net_effect
from quire_worker.errors import ConfigError, PublisherError
from quire_worker.kv.events import CacheEvent

log = logging.getLogger(__name__)

_MAX_PENDING_EVENTS = 20_000
_SEND_HIGH_WATER_MARK = 100_000
_WAKE_ENDPOINT = "inproc://wake"
_MAX_ECHO_S = 60.0
"""While one step takes long, the last load report is repeated for so long; after that the engine counts as stuck."""


@dataclass(frozen=True, kw_only=True)
class PublisherSettings:
    """Where and as whom to publish."""

    pod: str
    model: str
    epoch: str
    block_size: int
    events_endpoint: str
    """tcp:// address to bind; port 0 lets the system choose."""
    replay_endpoint: str | None
    """As above; None: no replay."""
    with_token_ids: bool = False


class Publisher:
    """Binds on construction; ConfigError names the flag of an address that cannot be had. Nothing is sent before start()."""

    def __init__(self, settings: PublisherSettings, trust: Trust | None, clock: Callable[[], float]) -> None:
        """`clock` gives Unix time, seconds. With `trust` the sockets speak CURVE and admit only its holders."""
        self._settings = settings
        self._clock = clock
        self._log = EventLog(settings.epoch, settings.block_size, with_token_ids=settings.with_token_ids)
        self._inbox = _Inbox(settings.block_size)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._cleanup = contextlib.ExitStack()
        if trust is not None:
            self._cleanup.enter_context(trust.only_trusted_clients(self._context))
        try:
            self._pub = self._bind(zmq.PUB, settings.events_endpoint, "--kv-events-endpoint", trust)
            self._router = None
            if settings.replay_endpoint is not None:
                self._router = self._bind(zmq.ROUTER, settings.replay_endpoint, "--kv-replay-endpoint", trust)
        except ConfigError:
            self._cleanup.close()
            self._context.destroy(linger=0)
            raise
        self._wake_receiver = self._context.socket(zmq.PULL)
        self._wake_receiver.bind(_WAKE_ENDPOINT)
        self._wake_sender = self._context.socket(zmq.PUSH)
        self._wake_sender.connect(_WAKE_ENDPOINT)
        self._load_seq = -1
        self._load_sent_s = 0.0
        self._load: LoadReport | None = None
        self._thread = threading.Thread(target=self._run, name="kv-publisher", daemon=True)

    @property
    def events_endpoint(self) -> str:
        """Where the PUB socket listens."""
        return _endpoint_of(self._pub)

    @property
    def replay_endpoint(self) -> str:
        """Where the ROUTER socket listens, "" without one."""
        return "" if self._router is None else _endpoint_of(self._router)

    def start(self) -> None:
        """From here on the sockets belong to the thread."""
        self._thread.start()

    def offer_events(self, events: list[CacheEvent]) -> None:
        """Publish these; called by the engine thread, never waits."""
        if self._inbox.add_events(events):
            self._wake()

    def offer_load(self, report: LoadReport) -> None:
        """Publish this, with the sequence of the last event batch and the time filled in; an older one not yet sent is dropped.

        Raises PublisherError if the thread died."""
        if not self._thread.is_alive():
            raise PublisherError(
                "the thread that publishes KV events died (its log has the traceback); the engine must restart"
            )
        self._inbox.set_load(report)
        self._wake()

    def close(self) -> None:
        """Send what is pending and stop."""
        self._inbox.close()
        if self._thread.is_alive():
            self._wake()
            self._thread.join()
        self._cleanup.close()
        self._context.destroy(linger=200)

    def _bind(self, kind: int, endpoint: str, flag: str, trust: Trust | None) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set(zmq.SNDHWM, _SEND_HIGH_WATER_MARK)
        socket.set(zmq.IPV6, 1 if "[" in endpoint else 0)
        if trust is not None:
            trust.secure_server(socket)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"{flag} {endpoint}: {error.strerror or error}; choose another address or port"
            ) from error
        return socket

    def _wake(self) -> None:
        # A full pipe means that a wake-up is on its way already.
        with contextlib.suppress(zmq.Again):
            self._wake_sender.send(b"", zmq.DONTWAIT)

    # ---- publisher thread

    def _run(self) -> None:
        self._publish(*self._log.start(self._clock()))
        poller = zmq.Poller()
        poller.register(self._wake_receiver, zmq.POLLIN)
        if self._router is not None:
            poller.register(self._router, zmq.POLLIN)
        while not self._inbox.is_closed:
            ready = dict(poller.poll(int(MAX_INTERVAL_S * 1000)))
            _drain(self._wake_receiver)
            self._flush()
            if self._router in ready:
                self._answer()
        self._flush()

    def _flush(self) -> None:
        events, load = self._inbox.take()
        now_s = self._clock()
        if events:
            self._publish(*self._log.append(events, now_s))
        if load is not None:
            self._load = load
            self._send_load(msgspec.structs.replace(load, ts=now_s, kv_seq=self._log.last_seq))
        elif (
            self._load is not None
            and now_s - self._load_sent_s >= MAX_INTERVAL_S
            and now_s - self._load.ts < _MAX_ECHO_S
        ):
            self._send_load(msgspec.structs.replace(self._load, ts=now_s, kv_seq=self._log.last_seq))

    def _publish(self, seq: int, payload: bytes) -> None:
        self._send(self._pub, encode_frames(kv_topic(self._settings.pod, self._settings.model), seq, payload))

    def _send_load(self, report: LoadReport) -> None:
        self._load_seq += 1
        self._load_sent_s = report.ts
        topic = load_topic(self._settings.pod, self._settings.model)
        self._send(self._pub, encode_frames(topic, self._load_seq, encode_report(report)))

    def _answer(self) -> None:
        """One request; more of them come round with the next poll."""
        assert self._router is not None
        frames = self._router.recv_multipart()
        try:
            request = decode_replay_request(frames)
        except WireError as error:
            log.warning("replay request refused reason=%s", error)
            return
        topic = kv_topic(self._settings.pod, self._settings.model)
        for seq, payload in self._batches(request):
            self._send(self._router, reply_frames(request, topic, seq, payload))
        self._send(self._router, reply_end(request, topic))

    def _batches(self, request: ReplayRequest) -> list[tuple[int, bytes]]:
        if request.start_seq is None:
            return [(self._log.last_seq, payload) for payload in self._log.snapshot(self._clock())]
        return self._log.since(request.start_seq)

    def _send(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        # A reader that is too slow or gone loses frames and sees the gap; the others must not wait for it.
        with contextlib.suppress(zmq.Again):
            socket.send_multipart(frames, zmq.DONTWAIT)


class _Inbox:
    """What the engine thread leaves for the publisher thread. The lock is held for moments only."""

    def __init__(self, block_size: int) -> None:
        self._lock = threading.Lock()
        self._block_size = block_size
        self._events: list[CacheEvent] = []
        self._load: LoadReport | None = None
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def add_events(self, events: list[CacheEvent]) -> bool:
        """Whether the publisher must be woken: it has nothing else pending."""
        with self._lock:
            was_empty = not self._events
            self._events += events
            if len(self._events) > _MAX_PENDING_EVENTS:
                self._events = net_effect(self._events, self._block_size)
            return was_empty

    def set_load(self, report: LoadReport) -> None:
        with self._lock:
            self._load = report

    def take(self) -> tuple[list[CacheEvent], LoadReport | None]:
        with self._lock:
            events, self._events = self._events, []
            load, self._load = self._load, None
            return events, load

    def close(self) -> None:
        self._is_closed = True


def _drain(socket: zmq.Socket[bytes]) -> None:
    with contextlib.suppress(zmq.Again):
        while True:
            socket.recv(zmq.DONTWAIT)


def _endpoint_of(socket: zmq.Socket[bytes]) -> str:
    endpoint = socket.get(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.decode().rstrip("\0")
