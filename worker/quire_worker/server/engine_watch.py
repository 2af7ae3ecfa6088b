"""Follows the engine process until it ends or hangs; then tells everybody why.

A step that hangs is ended by the engine's own watchdog. What that cannot see, because the whole process stands still, is seen here.
"""

import asyncio

from quire_worker.server.engine_client import EngineClient
from quire_worker.server.engine_process import EngineProcess
from quire_worker.server.waiting import cancelled, first, settled

_MARGIN_S = 3.0
"""The engine's own watchdog comes first: it knows more."""
_LOOKS = 3
_INBOX_S = 0.05


async def watch_engine(engine: EngineClient, process: EngineProcess, hang_timeout_s: float) -> None:
    """Hand out what the engine says until it ends, or makes no progress for `hang_timeout_s` (0: for ever) and is ended."""
    receiving = asyncio.create_task(engine.receive())
    hanging = asyncio.create_task(_until_hung(engine, hang_timeout_s))
    try:
        await first(settled(receiving), process.wait(), settled(hanging))
        if receiving.done():
            how = f"its messages cannot be read: {receiving.exception()}"
        elif hanging.done():
            how = hanging.result()
            await process.abort()
        else:
            how = await process.wait()
    finally:
        await cancelled(receiving)
        await cancelled(hanging)
    await engine.drain_inbox(_INBOX_S)
    engine.fail(how)


async def _until_hung(engine: EngineClient, timeout_s: float) -> str:
    """What is wrong, once it has been so at several looks: after a pause of this process, messages wait to be read."""
    if timeout_s == 0:
        await asyncio.Event().wait()
    num_bad = 0
    while True:
        problem = None if engine.heartbeat is None else engine.heartbeat.problem(timeout_s + min(_MARGIN_S, timeout_s))
        num_bad = 0 if problem is None else num_bad + 1
        if problem is not None and num_bad >= _LOOKS:
            return f"{problem}; the log has the stacks of its threads"
        await asyncio.sleep(min(1.0, timeout_s / 10))
