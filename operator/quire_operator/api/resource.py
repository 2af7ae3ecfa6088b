"""What every kind has around its spec: names, metadata, and how `kubectl` shows it.

This module must not know any particular kind.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from quire_operator.api.types import DNS_LABEL_PATTERN

GROUP = "quire.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["quire.dev/v1alpha1"] = "quire.dev/v1alpha1"
MAX_NAME_LENGTH = 40


class ObjectMeta(BaseModel):
    """Kubernetes' metadata, as far as Quire reads it; the API server owns the rest."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, strict=True, alias_generator=to_camel, serialize_by_alias=True
    )

    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=DNS_LABEL_PATTERN)]
    """At most 40 characters, so that names derived from it fit 63."""
    namespace: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] | None = None
    """Absent in a file: wherever it is applied."""
    uid: str | None = None
    """Set by the API server."""
    generation: int = 0
    """Counts changes of the spec."""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PrinterColumn:
    """One column of `kubectl get`."""

    name: str
    type: str
    json_path: str
    priority: int = 0
    """1 shows it with `-o wide` only."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a model becomes a CustomResourceDefinition."""

    model: type[Any]
    """The pydantic model of the whole resource."""
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    columns: tuple[PrinterColumn, ...]
    scale: bool = False
    """Has /scale, over .spec.replicas, .status.replicas and .status.selector."""
