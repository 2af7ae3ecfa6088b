"""The API process's end of the two sockets to the engine process: submits, aborts, and hands outputs to whoever waits.

Knows requests by id and never looks at tokens, text or HTTP. It must not know how the engine process is started: see engine_process.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from quire_worker.engine.messages import (
    Abort,
    Embed,
    Fatal,
    FromEngine,
    Outputs,
    Ready,
    Rejected,
    SetAsleep,
    SetDraining,
    Shutdown,
    SleepChanged,
    Stats,
    Submit,
    ToEngine,
)
from quire_worker.errors import QuireWorkerError
from quire_worker.server.mailbox import DEFAULT_UNREAD_BYTES, Mail, Mailbox, Mailroom

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


class EngineDeadError(QuireWorkerError):
    """The engine process ended or cannot go on. The message says why."""


class _Open:
    """A submitted request: its reader, and its choices that have not ended."""

    __slots__ = ("choices", "mailbox")

    def __init__(self, mailbox: Mailbox, n: int) -> None:
        self.mailbox = mailbox
        self.choices = set(range(n))


class Heartbeat:
    """What is known of the engine's life, by the clock of the API process (seconds)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.heard_s = clock()
        """When the last message came."""
        self.progressed_s = self.heard_s
        """When a step was last seen done, or the engine without work."""
        self._num_steps = -1

    def on_message(self) -> None:
        self.heard_s = self._clock()

    def on_stats(self, stats: Stats) -> None:
        idle = stats.num_running == 0 and stats.num_waiting == 0
        if idle or stats.num_steps != self._num_steps:
            self.progressed_s = self._clock()
        self._num_steps = stats.num_steps

    def problem(self, timeout_s: float) -> str | None:
        """What is wrong if the engine was silent, or had work and made no step, for more than `timeout_s`."""
        now = self._clock()
        if now - self.heard_s > timeout_s:
            return f"the engine has been silent for {now - self.heard_s:.0f} s"
        if now - self.progressed_s > timeout_s:
            return f"the engine has had work but made no step for {now - self.progressed_s:.0f} s"
        return None


class EngineClient:
    """Speaks engine.messages over two sockets that it binds in `folder` (private to this process and the engine)."""

    def __init__(
        self,
        folder: Path,
        clock: Callable[[], float],
        on_stats: Callable[[Stats], None],
        max_unread_bytes: int = DEFAULT_UNREAD_BYTES,
        on_slow_reader: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_unread_bytes`: outputs that wait for their readers, see mailbox.py; `on_slow_reader` hears of each that is cut."""
        self.inbound_endpoint = f"ipc://{folder}/to-engine"
        self.outbound_endpoint = f"ipc://{folder}/from-engine"
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._pull = zmq.asyncio.Context(self._context).socket(zmq.PULL)
        for socket in (self._push, self._pull):
            socket.set(zmq.SNDHWM, 0)
            socket.set(zmq.RCVHWM, 0)
            socket.set(zmq.LINGER, 0)
        self._push.bind(self.inbound_endpoint)
        self._pull.bind(self.outbound_endpoint)
        self._on_stats = on_stats
        self._on_slow_reader = on_slow_reader
        self._open: dict[str, _Open] = {}
        self._mailroom = Mailroom(max_unread_bytes)
        self._refusal: Exception | None = None
        self._draining = False
        self._clock = clock
        self.heartbeat: Heartbeat | None = None
        """None until the engine is ready."""
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        """Done when the engine can take requests, or failed with EngineDeadError."""
        self.died: asyncio.Future[EngineDeadError] = asyncio.get_running_loop().create_future()
        """Done when the engine is gone."""
        self._sleep_changed: asyncio.Future[SleepChanged] | None = None
        self.stats: Stats | None = None
        """The latest."""

    @contextlib.contextmanager
    def generating(self, submits: Sequence[Submit | Embed]) -> Iterator[Mailbox]:
        """Submit, and hand out the mailbox where all their outputs arrive. What has not ended when the block is left is aborted.

        Raises EngineDeadError if the engine is gone, or what `end_all` was given. Who takes too little is cut: `take` raises
        SlowReaderError.
        """
        mailbox = Mailbox(self._mailroom)
        try:
            for submit in submits:
                if self._refusal is not None:
                    raise self._refusal
                self._open[submit.request_id] = _Open(mailbox, submit.n)
                self._send(submit)
            yield mailbox
        finally:
            mailbox.close()
            for submit in submits:
                if self._open.pop(submit.request_id, None) is not None:
                    self._send(Abort(request_id=submit.request_id))

    def abort_choice(self, request_id: str, choice: int) -> None:
        """End one choice early (a stop string was found). Its later outputs are dropped."""
        opened = self._open.get(request_id)
        if opened is None or choice not in opened.choices:
            return
        self._close_choice(request_id, opened, choice)
        self._send(Abort(request_id=request_id, choice=choice))

    @property
    def dtype(self) -> str:
        """What the model computes in; "" until the engine is ready."""
        return self.ready.result().info.dtype if self.ready.done() and self.ready.exception() is None else ""

    def set_draining(self, draining: bool) -> None:
        """Show it in load reports. Before the engine is ready it is remembered."""
        self._draining = draining
        if self.ready.done():
            self._send(SetDraining(draining=draining))

    async def change_sleep(self, *, asleep: bool) -> SleepChanged:
        """Put the engine to sleep, or wake it, and wait until it is so. One at a time. Raises EngineDeadError if it is gone."""
        assert self._sleep_changed is None or self._sleep_changed.done()
        if self._refusal is not None:
            raise self._refusal
        self._sleep_changed = asyncio.get_running_loop().create_future()
        self._send(SetAsleep(asleep=asleep))
        return await self._sleep_changed

    def shut_down(self) -> None:
        """Ask the engine to exit."""
        self._send(Shutdown())

    async def receive(self) -> None:
        """Hand out what the engine sends, until cancelled."""
        while True:
            self._dispatch(_decoder.decode(await self._pull.recv()))
            await asyncio.sleep(
                0
            )  # frames that wait already would not suspend us, and nobody could write out the last one

    async def drain_inbox(self, timeout_s: float) -> None:
        """Take what a dead engine left behind, its Fatal above all. Call after `receive` was cancelled."""
        while await self._pull.poll(int(timeout_s * 1000)):
            self._dispatch(_decoder.decode(await self._pull.recv()))

    def fail(self, reason: str) -> None:
        """The engine is gone: everyone who waits is told. Only the first reason counts."""
        if self.died.done():
            return
        error = EngineDeadError(reason)
        self.died.set_result(error)
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # whoever waits gets it; nobody need wait
        self.end_all(error)

    def end_all(self, error: Exception) -> None:
        """Every generation, present or to come, ends with `error`."""
        self._refusal = error
        if self._sleep_changed is not None and not self._sleep_changed.done():
            self._sleep_changed.set_exception(error)
            self._sleep_changed.exception()  # whoever waits gets it; nobody need wait
        for request_id, opened in self._open.items():
            opened.mailbox.fail(error)
            self._send(Abort(request_id=request_id))
        self._open.clear()

    def close(self) -> None:
        self._push.close()
        self._pull.close()
        self._context.term()

    def _send(self, message: ToEngine) -> None:
        """Never waits: without a high-water mark only a missing peer refuses, and then there is nobody to tell."""
        with contextlib.suppress(zmq.Again):
            self._push.send(_encoder.encode(message), zmq.DONTWAIT)

    def _dispatch(self, message: FromEngine) -> None:
        if self.heartbeat is not None:
            self.heartbeat.on_message()
        match message:
            case Outputs():
                self._on_outputs(message)
            case Stats():
                self._take_stats(message)
            case Rejected():
                opened = self._open.pop(message.request_id, None)
                if opened is not None:
                    opened.mailbox.put(Mail(self._clock(), message))
            case Ready():
                self._on_ready(message)
            case SleepChanged():
                self._on_sleep_changed(message)
            case Fatal():
                self.fail(message.message)

    def _take_stats(self, stats: Stats) -> None:
        self.stats = stats
        if self.heartbeat is not None:
            self.heartbeat.on_stats(stats)
        self._on_stats(stats)

    def _on_sleep_changed(self, told: SleepChanged) -> None:
        if self._sleep_changed is not None and not self._sleep_changed.done():
            self._sleep_changed.set_result(told)

    def _on_ready(self, ready: Ready) -> None:
        self.heartbeat = Heartbeat(self._clock)
        if not self.ready.done():
            self.ready.set_result(ready)
        if self._draining:
            self._send(SetDraining(draining=True))

    def _on_outputs(self, outputs: Outputs) -> None:
        now_s = self._clock()
        for item in outputs.items:
            opened = self._open.get(item.request_id)
            if opened is None or item.choice not in opened.choices:
                continue  # aborted while these tokens were on their way
            slow = opened.mailbox.put(Mail(now_s, item))
            if item.finish_reason is not None:
                self._close_choice(item.request_id, opened, item.choice)
            if slow is not None:
                self._cut(slow)

    def _cut(self, mailbox: Mailbox) -> None:
        """End what is generated for a reader that does not take it."""
        mailbox.cut()
        self._on_slow_reader()
        for request_id in [request_id for request_id, opened in self._open.items() if opened.mailbox is mailbox]:
            del self._open[request_id]
            self._send(Abort(request_id=request_id))

    def _close_choice(self, request_id: str, opened: _Open, choice: int) -> None:
        opened.choices.discard(choice)
        if not opened.choices:
            del self._open[request_id]
