"""Load report: what a router must know of a worker to choose it. Travels on the event socket under `load_topic`.

Sent when something changed, at most every MIN_INTERVAL_S, and at least every MAX_INTERVAL_S: it is the heartbeat. A reader that
has heard none for LOST_AFTER_S takes the worker's state as unknown. Knows nothing of sockets and clocks.
"""

import msgspec

from quire_contract.wire import WireError

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 1.0
LOST_AFTER_S = 3.0


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
    running: int
    """Requests (choices) in the batch."""
    waiting: int
    free_blocks: int
    """Blocks that can be had now: unused ones and cached ones that nobody references."""
    total_blocks: int
    uncached_tokens: int
    """Prompt tokens still to be computed, over waiting and running requests: the prefill work already promised."""
    block_size: int = 16
    max_num_seqs: int = 0
    """Requests that may run at once; 0 if not told."""
    adapters: list[str] = []
    """Those that are loaded."""
    draining: bool = False
    prefill_tokens_per_s: float = 0.0
    """Measured over the last seconds; 0.0 until there is a measurement."""
    decode_step_s: float = 0.0
    """Seconds of a step that only decodes, measured; 0.0 until there is a measurement."""
    max_adapters: int = 0
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
