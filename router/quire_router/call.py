"""A request that may go to a worker, and what became of it. State only."""

import msgspec
from multidict import MultiMapping

from quire_contract.openai.requests import RoutingFields
from quire_contract.router_tenants import TenantEntry
from quire_router.route_plan import RoutePlan
from quire_router.scoring import Choice
from quire_router.snapshots import ReadablePrompt

STATUS_FAILED = 500
"""Until a call has ended in any other way: what breaks here is our fault."""
STATUS_CLIENT_GONE = 499
"""For logs and metrics only: nobody reads it."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who sends a request."""

    entry: TenantEntry
    key_id: str
    """The key that was presented."""


class Usage(msgspec.Struct, kw_only=True, gc=False):
    """Tokens of a request, as far as they are known."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt's, those that the worker had in its cache."""
    output: int = 0


class Call(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that was looked at and may go to a worker."""

    request_id: str
    model: str
    """As the client asked for it."""
    targets: tuple[str, ...]
    """Models that may answer, in the order in which they are tried; `model` alone unless that is a route."""
    path: str
    body: bytes
    is_stream: bool
    first_byte_timeout_s: float | None
    """Until the first event of a stream; None: the proxy's own limit."""
    prompt: ReadablePrompt | None
    """As the first target reads it; None: the call has no prompt to route by."""
    keep_key: bool
    """Whether the client's Authorization header is for the worker."""
    headers: MultiMapping[str]
    """The client's."""
    fields: RoutingFields | None = None
    """What the body says; None: the call has no prompt to route by."""
    tenant: Tenant | None = None
    """None: the release knows no tenants."""
    arrived_s: float = 0.0
    """When it came, by the process's monotonic clock."""
    deadline_s: float | None = None
    """By the same clock, when its answer is of no use any more; None: as long as it takes."""
    priority: int = 0
    """Higher goes first when requests wait."""
    cache_salt: str | None = None
    """Keeps its cached prefixes apart from those with another one; None: the body's own, if any."""
    route: RoutePlan | None = None
    """How `targets` came about; None: `model` is no route."""
    has_other_models: bool = False
    """Whether another model may still be tried, should this attempt's stream be refused after it had to begin (`LateRefusalError`)."""


class Outcome(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """What became of a call; filled in as it goes, for logs and metrics."""

    model: str | None = None
    """None: nobody declared the model that was asked for."""
    target: str | None = None
    """The model that was chosen last for a route."""
    attempts: int = 0
    choice: Choice | None = None
    status: int = STATUS_FAILED
    first_byte_s: float | None = None
    problem: str = ""
    usage: Usage | None = None
    """None: not known, of a call that a worker answered; nothing, of any other."""
    cached_answer: str = ""
    """"cache" or "shared" if no worker computed the answer for this call alone."""
    flags: list[str] = []
    """Names of content filters that found something."""
    resumes: int = 0
    """How often its stream went on at another worker."""
    waited_s: float = 0.0
    """In the router's own queue, before it went to a worker."""
    late_status: int = 0
    """Of the error that a stream tells of in an event, since it had to begin before its worker was known; 0: there is none."""
    is_cut: bool = False
    """A content filter ended its stream, and its client has the end of it."""
