"""The parts of an InferenceService's spec about its requests: how a worker is chosen, how many may wait, what tokens cost.

Routers are told of them; no pod is. This module must not know how routers choose or count.
"""

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel
from quire_operator.api.types import DecimalText


class RoutingSpec(ApiModel):
    """How routers treat the service's requests. Changes hold within seconds and restart nothing."""

    policy: Literal["KvAware", "RoundRobin", "LeastLoad", "ConsistentHash", "SessionAffinity"] = "KvAware"
    """How a worker is chosen: by the prompt's cached blocks and all work (KvAware), in turn, by the fewest requests, by a hash of the
    prompt's beginning, or one worker for each session."""
    max_queued_requests: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Requests that may wait in a router while the workers are full; further ones get 429. As the routers' settings say when absent."""
    queue_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """Longest wait there. As the routers' settings say when absent."""
    sticky: Literal["None", "Tenant", "User"] = "None"
    """Whose requests stay at one revision while a canary splits them: a tenant's, or those with one `user`."""


class PriceSpec(ApiModel):
    """What the service's tokens cost: decimal numbers, as text, for a million tokens, in the currency of the routers' settings."""

    input: DecimalText = "0"
    """Prompt tokens, such as "0.15"."""
    cached_input: DecimalText | None = None
    """Prompt tokens that the worker had in its cache; as input when absent."""
    output: DecimalText = "0"
    """Tokens of the answer."""
