"""Tenant: who may send requests, with which keys, to which models, how much.

Keys are stored as digests: nothing here, and no Secret, can be turned back into a key. This module must not know how limits are counted.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel, Rule
from quire_operator.api.resource import API_VERSION, Kind, ObjectMeta, PrinterColumn
from quire_operator.api.status import AcceptanceStatus
from quire_operator.api.types import ServedName

RFC3339_PATTERN = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$"


class TenantKey(ApiModel):
    """One API key, by its digest."""

    id: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    """A name for logs and revocation; not secret."""
    sha256: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, 64 lower-case hexadecimal digits."""
    expires_at: (
        Annotated[str, Field(max_length=40, pattern=RFC3339_PATTERN, json_schema_extra={"format": "date-time"})] | None
    ) = None
    """When the key stops working, as 2027-01-31T00:00:00Z; never when absent."""


class TenantLimits(ApiModel):
    """How much a tenant may ask for; what is absent is not limited."""

    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Requests that are admitted in a minute."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=10_000_000_000)] | None = None
    """Prompt and answer tokens in a minute."""
    tokens_per_day: Annotated[int, Field(ge=1, le=10_000_000_000_000)] | None = None
    """Prompt and answer tokens in a UTC day."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests in flight at once."""


class TenantSpec(ApiModel):
    """Who the tenant is and what it may do."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """For people."""
    keys: Annotated[
        tuple[TenantKey, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]}),
    ] = ()
    """Keys that authenticate the tenant; remove one to revoke it."""
    models: Annotated[
        tuple[ServedName, ...], Field(max_length=128, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """Models that it may use; all when empty."""
    limits: TenantLimits = TenantLimits()
    """How much it may ask for."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Higher goes first when requests wait; negative is dropped first when too many do."""
    cache_sharing: Literal["Private", "Shared"] = "Private"
    """Private keeps cached prefixes apart from every other tenant's, so that nobody can time them."""
    suspended: bool = False
    """Refuses every request, with all keys kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.keys) || self.keys.all(a, self.keys.exists_one(b, a.id == b.id))",
            check=lambda tenant: len({key.id for key in tenant.keys}) == len(tenant.keys),
            message="two keys have the same id; rename one",
            field="keys",
        ),
    )


class Tenant(ApiModel):
    """Somebody who sends requests."""

    api_version: Literal["quire.dev/v1alpha1"] = API_VERSION
    kind: Literal["Tenant"] = "Tenant"
    metadata: ObjectMeta
    spec: TenantSpec
    """Who the tenant is and what it may do."""
    status: AcceptanceStatus | None = None
    """What the operator found."""


TENANT = Kind(
    model=Tenant,
    kind="Tenant",
    plural="tenants",
    singular="tenant",
    short_names=("qtenant",),
    columns=(
        PrinterColumn(name="Display-Name", type="string", json_path=".spec.displayName"),
        PrinterColumn(name="Suspended", type="boolean", json_path=".spec.suspended"),
        PrinterColumn(name="Priority", type="integer", json_path=".spec.priority"),
        PrinterColumn(name="Accepted", type="string", json_path='.status.conditions[?(@.type=="Accepted")].status'),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    ),
)
