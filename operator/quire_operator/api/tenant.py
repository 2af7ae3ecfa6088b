"""Tenant: who may send requests, with which keys, to which models, how much.

Keys are stored as digests: nothing here, and no Secret, can be turned back into a key. This module must not know how limits are counted.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from quire_operator.api.base import ApiModel, Rule
from quire_operator.api.resource import API_VERSION, Kind, ObjectMeta, PrinterColumn
from quire_operator.api.status import AcceptanceStatus
from quire_operator.api.types import DecimalText, ServedName

RFC3339_PATTERN = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})$"


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        message = "is no time such as 2027-01-31T00:00:00Z: {error}"
        raise PydanticCustomError("time", message, {"error": str(error)}) from None
    return text


class TenantKey(ApiModel):
    """One API key, by its digest."""

    id: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    """A name for logs and revocation; not secret."""
    sha256: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the key, 64 lower-case hexadecimal digits."""
    expires_at: (
        Annotated[
            str,
            Field(max_length=40, pattern=RFC3339_PATTERN, json_schema_extra={"format": "date-time"}),
            AfterValidator(_time),
        ]
        | None
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
    tokens_per_month: Annotated[int, Field(ge=1, le=1_000_000_000_000_000)] | None = None
    """Prompt and answer tokens in a UTC month."""


class TenantBilling(ApiModel):
    """How the tenant pays for what it uses, at the prices of the services."""

    mode: Literal["Postpaid", "Prepaid"] = "Postpaid"
    """Postpaid is written down; Prepaid is served while it has cost less than the credit."""
    credit: DecimalText | None = None
    """All that was ever paid in, such as "250.00", in the currency of the routers' settings: raise it by what is paid."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.mode != 'Prepaid' || has(self.credit)",
            check=lambda billing: billing.mode != "Prepaid" or billing.credit is not None,
            message='mode Prepaid needs the credit; write all that was paid in, such as "250.00"',
            field="credit",
        ),
    )


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
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Share among tenants of one priority when requests wait."""
    billing: TenantBilling = TenantBilling()
    """How it pays."""
    response_cache: Literal["Enabled", "Disabled"] = "Enabled"
    """Whether answers may come from the response cache and from an identical request in flight, where the release uses them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.keys) || self.keys.all(a, self.keys.exists_one(b, a.id == b.id))",
            check=lambda tenant: len({key.id for key in tenant.keys}) == len(tenant.keys),
            message="two keys have the same id; rename one",
            field="keys",
        ),
        Rule(
            cel="!has(self.keys) || self.keys.all(a, self.keys.exists_one(b, a.sha256 == b.sha256))",
            check=lambda tenant: len({key.sha256 for key in tenant.keys}) == len(tenant.keys),
            message="a key is listed twice, under two ids; remove one",
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
        PrinterColumn(name="Reason", type="string", json_path='.status.conditions[?(@.type=="Accepted")].reason'),
        PrinterColumn(name="Billing", type="string", json_path=".spec.billing.mode", priority=1),
        PrinterColumn(
            name="Message", type="string", json_path='.status.conditions[?(@.type=="Accepted")].message', priority=1
        ),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    ),
)
