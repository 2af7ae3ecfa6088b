"""Demand report: what an autoscaler reads of a router, at GET PATH_DEMAND with the token of the trust folder.

    ?since=EDGE&wait=S   answers as soon as the number of edges differs from EDGE, at the latest after S seconds (at most MAX_WAIT_S);
                         without them at once. An edge is a queue that gets its first waiting request: zero to one is told at once,
                         what grows on is seen by asking again.

How the reports of several routers add up, for one service: `held`, `unreported` and `arrivals_per_s` are each router's own and are summed;
`queued` and `running` are what the same workers told all of them: the largest counts. Demand is held + queued + running + unreported.
An answer that does not come, or another `boot` than before, means unknown, never zero.
"""

from typing import Annotated

import msgspec

from quire_contract import names
from quire_contract.wire import WireError

MAX_WAIT_S = 30.0
EDGE_MIN_S = 1.0
"""Edges of one service that follow each other sooner are told as one, at the end of that time: a queue may begin with each request."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""A number that is negative, or too large for what is reckoned with it, would be taken off the other routers', or end in no number."""
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]
PerSecond = Annotated[float, msgspec.Meta(ge=0.0, le=1e12)]


class WorkerDemand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one worker, as the router knows it."""

    in_flight: Count
    """Requests in its queue, in its batch and on the way to it."""
    kv_used_tokens: Count = 0
    """KV that its requests hold."""
    draining: bool = False
    ready: bool = True
    """Whether it takes requests."""


class ServiceDemand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one InferenceService. A request that several services may answer is held for the first of them."""

    held: Count
    """Requests that wait in the router, and those of a route that another service answers only because no worker of this one is ready."""
    held_oldest_s: Seconds
    """How long the oldest of them has waited; 0.0: none."""
    held_without_worker: Count
    """Of `held`, those that wait because no worker that may answer is ready."""
    queued: Count
    """Requests in the workers' own queues, as they reported last."""
    running: Count
    """Requests in the workers' batches, as they reported last."""
    unreported: Count
    """Requests that this router sent and no report can include yet; all it has there, at workers that report nothing."""
    arrivals: Count
    """Requests that came since the router began, refused ones included."""
    arrivals_per_s: PerSecond
    """Over the last half minute."""
    endpoints: Count
    """Workers in the router's configuration."""
    ready_endpoints: Count
    """Those that take requests."""
    queue_wait_p95_s: Seconds | None = None
    """95th percentile over the last minute: how long requests waited here that were sent on. None: none was. Of several
    routers' the largest counts."""
    ttft_p95_s: Seconds | None = None
    """The same of the time from a stream's arrival here to its first token."""
    inter_token_p95_s: Seconds | None = None
    """The same of the time between two events of a stream."""
    kv_used_tokens: Count = 0
    """KV that requests hold, over the workers that report."""
    kv_total_tokens: Count = 0
    """KV that these workers have."""
    max_num_seqs: Count = 0
    """Requests that these workers may run at once; 0 if none has told."""
    reporting: Count = 0
    """Workers whose reports are fresh: what the three sums above are over."""
    workers: dict[str, WorkerDemand] = {}
    """By the name of the pod."""


class DemandReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer. Readers ignore fields that they do not know."""

    router: str
    """Name of the router's pod, or of its process."""
    boot: str
    """Another one after a restart, when counters begin anew."""
    sequence: Count
    """Grows with each report that the router gives to anybody."""
    edge: Count
    """Number of edges so far: `since` of the next question."""
    ts: float
    """Unix time in seconds, of the router's clock."""
    services: dict[str, ServiceDemand]
    """By "namespace/name"; every service with a served name is there."""


def demand_query(service: str) -> str:
    """PromQL for the demand of the service "namespace/name": one series, however many routers there are, and none if none is scraped."""
    label = f'service="{service}"'
    own, workers = names.QUIRE_ROUTER_DEMAND_OWN, names.QUIRE_ROUTER_DEMAND_WORKERS
    return f"sum({own}{{{label}}}) + max({workers}{{{label}}})"


_DECODER = msgspec.json.Decoder(DemandReport)


def encode_demand(report: DemandReport) -> bytes:
    """The answer's body."""
    return msgspec.json.encode(report)


def decode_demand(body: bytes) -> DemandReport:
    """The report in an answer's body. WireError if it is none."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"demand report: {error}") from None
