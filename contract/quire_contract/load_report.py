"""Load report: what a router must know of a worker to choose it. Travels on the event socket under `load_topic`.

Sent when something changed, at most every MIN_INTERVAL_S, and at least every MAX_INTERVAL_S: it is the heartbeat. A reader that
has heard none for LOST_AFTER_S takes the worker's state as unknown. Knows nothing of sockets and clocks.
"""

from typing import Annotated

import msgspec

from quire_contract.wire import WireError

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 1.0
LOST_AFTER_S = 3.0
MAX_COUNT = 2**40
"""Of anything that a worker counts; sums over all workers stay within 64 bits."""
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Measure = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]
"""Something measured; no NaN, no infinity."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A worker's state. A msgpack map: readers ignore fields that they do not know."""

    pod: str
    model: str
    """First served name."""
    epoch: str
    """Another one than before: the worker restarted and holds nothing."""
    ts: float
    """Unix time in seconds, of the worker's clock."""
    kv_seq: int
    """Sequence of the last KV event batch sent; a reader that has a smaller one lost batches."""
    running: Count
    """Requests (choices) in the batch."""
    waiting: Count
    free_blocks: Count
    """Blocks that can be had now: unused ones and cached ones that nobody references."""
    total_blocks: Annotated[int, msgspec.Meta(ge=0, le=2**32)]
    uncached_tokens: Count
    """Prompt tokens still to be computed, over waiting and running requests: the prefill work already promised."""
    block_size: Annotated[int, msgspec.Meta(ge=1, le=2**20)] = 16
    max_num_seqs: Count = 0
    """Requests that may run at once; 0 if not told."""
    adapters: list[str] = []
    """Those that are loaded."""
    draining: bool = False
    prefill_tokens_per_s: Measure = 0.0
    """Measured over the last seconds; 0.0 until there is a measurement."""
    decode_step_s: Measure = 0.0
    """Seconds of a step that only decodes, measured; 0.0 until there is a measurement."""
    max_adapters: Count = 0
    """Adapters that may be loaded at once; 0 if not told."""
    asleep: bool = False
    """It takes no requests until it is woken."""


_DECODER = msgspec.msgpack.Decoder(LoadReport)


def encode_report(report: LoadReport) -> bytes:
    """Payload of a load report."""
    return msgspec.msgpack.encode(report)


def decode_report(payload: bytes) -> LoadReport:
    """Load report of a payload. WireError if it is none."""
    try:
        return _DECODER.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"load report: {error}") from None
