"""How a worker started, and how it sleeps: what GET names.PATH_STARTUP answers, and POST names.PATH_SLEEP and PATH_WAKE.

    exec ──── process ────> weights begin ──── weights ────> in memory ──── engine ────> ready ... first request ── first token

JSON. A worker fills in what it knows so far; whoever schedules it knows what came before its process. Readers ignore keys that they do not
know.
"""

from typing import Literal

import msgspec

from quire_contract.wire import WireError

SleepState = Literal["awake", "falling_asleep", "asleep", "waking"]
"""Only an awake worker takes requests."""


class StartupReport(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, from the start of the worker's process (its exec). The three parts add up to the whole."""

    pod: str
    model: str
    """First served name."""
    phase: str
    """loading, ready, asleep, draining or failed."""
    elapsed_s: float
    """Since the process began."""
    process_s: float | None = None
    """Until weights were being read: interpreter, imports, flags, the engine's process. None: not yet."""
    weights_s: float | None = None
    """Reading and packing them; 0 where there are none."""
    engine_s: float | None = None
    """From there to ready: memory for KV, first steps, recordings."""
    ready_s: float | None = None
    """All of it."""
    weights_bytes: int = 0
    """Read from the checkpoint."""
    weights_bytes_per_s: float = 0.0
    first_token_s: float | None = None
    """Of the first request that had one: from its arrival to its first token."""
    detail_s: dict[str, float] = {}
    """Smaller parts by name; some overlap."""
    sleep: SleepState = "awake"
    num_wakes: int = 0
    """How often it was woken."""
    last_wake_s: float | None = None
    """How long that took last."""
    last_sleep_s: float | None = None
    """How long it took to fall asleep last, without waiting for requests."""


class SleepAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request to sleep or to wake."""

    state: SleepState
    """Now; the request is done."""
    changed: bool
    """False: it was so already."""
    time_s: float = 0.0
    """How long the change took, without waiting for requests."""
    size_bytes: int = 0
    """Memory given back, or filled again."""
    num_requests: int = 0
    """Requests inside."""


def decode_startup(content: bytes) -> StartupReport:
    """WireError if it is none."""
    try:
        return msgspec.json.decode(content, type=StartupReport)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"startup report: {error}") from None
