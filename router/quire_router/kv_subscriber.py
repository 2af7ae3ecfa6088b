"""One endpoint's event socket: KV events and load reports in, snapshots asked for when the follower is out of step.

Sockets only: what the messages mean is `kv_follower`'s. The connection itself is watched too: when it breaks, the endpoint is suspect at
once, long before a heartbeat is missed.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from quire_contract.kv_events import decode_batch, decode_frames, parse_topic, snapshot_request
from quire_contract.load_report import decode_report
from quire_contract.telemetry import log_event
from quire_contract.trust import Trust
from quire_contract.wire import WireError
from quire_router.endpoints import Endpoint
from quire_router.kv_follower import KvFollower

log = logging.getLogger("quire_router.events")

MAX_TAKEN_AT_ONCE = 64
"""Messages handled before other tasks get a turn."""
SNAPSHOT_TIMEOUT_S = 2.0
"""Longest silence within a snapshot."""
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 2.0
RECEIVE_LIMIT = 100_000
"""Messages that ZMQ keeps for us; beyond it drops them, which shows as a gap."""
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 1000, 3000


class KvSubscriber:
    """Runs until cancelled. Everything that a socket says ends up in the follower."""

    def __init__(
        self,
        endpoint: Endpoint,
        follower: KvFollower,
        context: zmq.asyncio.Context,
        *,
        trust: Trust | None,
        clock: Callable[[], float],
    ) -> None:
        self._endpoint = endpoint
        self._follower = follower
        self._context = context
        self._trust = trust
        self._clock = clock
        self._wake = asyncio.Event()
        self._connected = False
        self._complained = ""

    async def run(self) -> None:
        """Follow the endpoint's events until cancelled. Returns at once if it has no event socket or an unusable address."""
        address = self._endpoint.entry.events
        if address is None:
            return
        events = self._client(zmq.SUB, address)
        events.setsockopt(zmq.RCVHWM, RECEIVE_LIMIT)
        events.setsockopt(zmq.RECONNECT_IVL, 100)
        events.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        for kind in (b"kv@", b"load@"):
            events.setsockopt(zmq.SUBSCRIBE, kind)
        monitor = events.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        try:
            events.connect(address)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(events))
                tasks.create_task(self._watch(monitor))
                tasks.create_task(self._keep_in_step())
        except zmq.ZMQError as error:
            log_event(log, logging.ERROR, "events_unusable", endpoint=self._endpoint.id, address=address, problem=error)
        finally:
            events.disable_monitor()
            events.close(linger=0)
            self._follower.disconnected()

    def _client(self, kind: int, address: str) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IPV6, 1 if "[" in address else 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if self._trust is not None:
            self._trust.secure_client(socket)
        return socket

    async def _receive(self, events: zmq.asyncio.Socket) -> None:
        taken = 0
        while True:
            frames = await events.recv_multipart()
            self._take(frames)
            taken += 1
            if taken % MAX_TAKEN_AT_ONCE == 0:  # a receive that need not wait gives nobody else a turn
                await asyncio.sleep(0)

    def _take(self, frames: list[bytes]) -> None:
        try:
            frame = decode_frames(frames)
            kind, pod, _model = parse_topic(frame.topic)
            if pod != self._endpoint.entry.pod_name:
                self._complain(
                    f"pod {pod!r} answers at this address; give the endpoint that id, or the address of its own pod"
                )
                return
            if kind == "kv":
                self._follower.take_batch(frame.seq, decode_batch(frame.payload))
            else:
                self._follower.take_report(decode_report(frame.payload), self._clock())
        except WireError as error:
            self._complain(str(error))
        if self._follower.wants_snapshot:
            self._wake.set()

    def _complain(self, problem: str) -> None:
        if problem != self._complained:  # once for each kind of trouble, not for each message
            self._complained = problem
            log_event(log, logging.WARNING, "bad_event", endpoint=self._endpoint.id, problem=problem)

    async def _watch(self, monitor: Any) -> None:
        while True:
            message = await recv_monitor_message(monitor)
            self._connected = message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self._connected:
                log_event(log, logging.INFO, "events_connected", endpoint=self._endpoint.id)
                self._follower.connected()
                self._wake.set()
            else:
                log_event(log, logging.INFO, "events_lost", endpoint=self._endpoint.id)
                self._follower.disconnected()
                self._endpoint.on_suspect()

    async def _keep_in_step(self) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._connected and self._follower.wants_snapshot:
                if await self._fetch_snapshot():
                    delay_s = RETRY_FIRST_S
                else:
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, RETRY_MOST_S)

    async def _fetch_snapshot(self) -> bool:
        self._follower.begin_snapshot()
        try:
            seq, epoch = await self._receive_snapshot()
        except (TimeoutError, WireError, zmq.ZMQError) as error:
            self._follower.abandon_snapshot()
            self._complain(f"no snapshot: {error or 'timeout'}")
            return False
        if seq is None:
            self._follower.end_without_snapshot()
        else:
            self._follower.end_snapshot(seq, epoch)
            log_event(log, logging.INFO, "snapshot", endpoint=self._endpoint.id, seq=seq, epoch=epoch)
        return True

    async def _receive_snapshot(self) -> tuple[int | None, str | None]:
        """(last sequence that the snapshot includes, its epoch); None for the sequence if there was no snapshot."""
        address = self._endpoint.entry.replay
        if address is None:
            return None, None
        seq, epoch = None, None
        with self._client(zmq.DEALER, address) as socket:
            socket.connect(address)
            await socket.send_multipart(snapshot_request())
            while True:
                async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                    frame = decode_frames(await socket.recv_multipart())
                if frame.is_end:
                    return seq, epoch
                batch = decode_batch(frame.payload)
                seq, epoch = frame.seq, batch.epoch
                self._follower.take_snapshot_part(batch)
                await asyncio.sleep(0)  # a large snapshot must not hold up requests
