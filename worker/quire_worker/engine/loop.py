"""The engine's loop: messages in, one step, tokens out.

Knows sockets and times; not how a step works. With work in hand it never waits for a socket; idle it waits for nothing else.
"""

import contextlib
import time
from collections.abc import Callable

import msgspec
import zmq

from quire_worker.engine.grammar_desk import GrammarDesk
from quire_worker.engine.load_meter import LoadMeter
from quire_worker.engine.messages import (
    Abort,
    Embed,
    FromEngine,
    Outputs,
    Rejected,
    SetAsleep,
    SetDraining,
    Shutdown,
    Submit,
    ToEngine,
)
from quire_worker.engine.publisher import Publisher
from quire_worker.engine.retry_advice import RetryAdvice
from quire_worker.engine.served import ServedEngine
from quire_worker.engine.slumber import Slumber
from quire_worker.engine.stats import Pace, StatsCollector
from quire_worker.kv.events import CacheEvent
from quire_worker.scheduling.intake import Rejection


class EngineLoop:
    """Runs until a Shutdown message. Owned by one thread, as both sockets are."""

    def __init__(
        self,
        engine: ServedEngine,
        inbound: zmq.Socket[bytes],
        outbound: zmq.Socket[bytes],
        stats: StatsCollector,
        advice: RetryAdvice,
        telling: "Telling | None" = None,
        clock: Callable[[], float] = time.perf_counter,
        desk: GrammarDesk | None = None,
    ) -> None:
        """`telling` publishes KV events and load reports; None: nobody is told. `desk`: where grammars are compiled; None: an
        engine without grammars."""
        self._engine = engine
        self._inbound = inbound
        self._outbound = outbound
        self._stats = stats
        self._advice = advice
        self._telling = telling
        self._clock = clock
        self._desk = desk
        self._slumber = Slumber(engine.scheduler, engine.dormant)
        self._poller = zmq.Poller()
        self._poller.register(inbound, zmq.POLLIN)
        if desk is not None and desk.wake_fd is not None:
            self._poller.register(desk.wake_fd, zmq.POLLIN)
        self._pace = Pace()
        self._is_draining = False
        self._must_stop = False
        self.num_turns = 0
        """Grows with each step that did something and while there is nothing to do: what stands still hangs. For the watchdog."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], ToEngine] = msgspec.msgpack.Decoder(ToEngine).decode

    def run(self) -> None:
        """Returns after Shutdown. Raises DeviceError when the device cannot go on."""
        while not self._must_stop:
            if not self._engine.scheduler.has_work:
                self.num_turns += 1
                self._poller.poll(1 + int(self._idle_s() * 1000))
            self._receive()
            self._visit_desk()
            if self._engine.scheduler.has_work:
                self._step()
            self._turn_in()
            if self._pace.wait_s(self._clock()) == 0.0:
                self._report()

    def send(self, message: FromEngine) -> None:
        """Hand a message to the API process; never waits (the socket has no high-water mark)."""
        self._outbound.send(self._encode(message), zmq.DONTWAIT)

    def _idle_s(self) -> float:
        """How long there is nothing to do unless something arrives."""
        pause_s = self._pace.wait_s(self._clock())
        return pause_s if self._desk is None else min(pause_s, self._desk.wait_s)

    def _visit_desk(self) -> None:
        """Hand on what was compiled, and end what waited too long for that."""
        if self._desk is None:
            return
        self._desk.collect(self._refuse)
        ended = self._desk.expire()
        if ended:
            self.send(Outputs(items=ended))
            self._pace.on_change()

    def _receive(self) -> None:
        """Everything that has arrived, in order."""
        with contextlib.suppress(zmq.Again):
            while not self._must_stop:
                self._handle(self._decode(self._inbound.recv(zmq.DONTWAIT)))

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit() | Embed():
                rejection = self._add(message)
                if rejection is not None:
                    self._refuse(message, rejection)
            case Abort():
                if self._desk is not None:
                    self._desk.abort(message)
                self._engine.scheduler.abort(message.request_id, message.choice)
            case SetDraining():
                self._is_draining = message.draining
            case SetAsleep():
                self._slumber.ask(asleep=message.asleep)
            case Shutdown():
                self._must_stop = True
        self._pace.on_change()

    def _add(self, message: Submit | Embed) -> Rejection | None:
        """To the scheduler now, or by way of the desk that compiles its grammar."""
        if self._slumber.asleep:
            return Rejection("invalid", "The engine is asleep: wake it first.")
        if self._desk is not None and isinstance(message, Submit) and message.grammar is not None:
            return self._desk.take(message)
        return self._engine.add(message)

    def _refuse(self, message: Submit | Embed, rejection: Rejection) -> None:
        retry_after_s = 1
        if rejection.reason == "queue_full":
            # Of embeddings the queue counts requests, of text choices.
            num_refused = message.n if isinstance(message, Submit) else 1
            retry_after_s = self._advice.on_refused(num_refused, self._clock())
        self.send(
            Rejected(
                request_id=message.request_id,
                reason=rejection.reason,
                message=rejection.message,
                retry_after_s=retry_after_s,
            )
        )
        self._pace.on_change()

    def _step(self) -> None:
        start = self._clock()
        outputs = self._engine.step()
        if outputs:
            self.send(Outputs(items=outputs))
        events = self._engine.scheduler.take_cache_events()
        if outputs or self._engine.last_step_tokens:
            self.num_turns += 1
        if self._engine.last_step_tokens:
            time_s = self._clock() - start
            self._stats.add_step(self._engine.last_step_tokens, time_s)
            self._advice.speeds.add(self._engine.last_step_tokens, self._engine.last_step_rows, time_s)
        if self._telling is not None and events:
            self._telling.publish(events)
        self._pace.on_change()

    def _turn_in(self) -> None:
        """Sleep or wake, if that was asked for and can be."""
        told = self._slumber.turn(self._show_life)
        if told is None:
            return
        events = self._engine.scheduler.take_cache_events()
        if self._telling is not None and events:
            self._telling.publish(events)
        self.send(told)
        self._pace.on_change()

    def _show_life(self) -> None:
        """For the watchdog and the API process, amid something that takes long."""
        self.num_turns += 1
        if self._pace.wait_s(self._clock()) == 0.0:
            self._report()

    def _report(self) -> None:
        self.send(self._stats.take(self._advice.for_queue(self._engine.scheduler.num_waiting)))
        if self._telling is not None:
            self._telling.report(draining=self._is_draining, asleep=self._slumber.asleep)
        self._pace.on_sent(self._clock())


class Telling:
    """What routers are told: cache events after each step, load reports at the loop's pace."""

    def __init__(self, publisher: Publisher, meter: LoadMeter, wall_clock: Callable[[], float]) -> None:
        """`wall_clock` gives Unix time, seconds."""
        self._publisher = publisher
        self._meter = meter
        self._wall_clock = wall_clock

    def publish(self, events: list[CacheEvent]) -> None:
        """Send what happened to the prefix cache."""
        self._publisher.offer_events(events)

    def report(self, *, draining: bool, asleep: bool = False) -> None:
        """Send a load report."""
        self._publisher.offer_load(self._meter.report(self._wall_clock(), draining=draining, asleep=asleep))
