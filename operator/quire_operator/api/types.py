"""Scalar and collection types of the API, each with bounds that the API server and pydantic both enforce.

This module must not know any resource. Kubernetes quantities follow apimachinery's `resource.Quantity` (suffix form, no exponents).
"""

import difflib
import re
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

QUANTITY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,6})?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
DECIMAL_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,9})?$"
DNS_LABEL_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
SERVED_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
ENV_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def quantity_value(quantity: str) -> Decimal:
    """The number that a quantity stands for: "1.5Gi" is 1610612736, "250m" is 0.25."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    assert match is not None, f"not a quantity: {quantity}"
    number, suffix = Decimal(match[1]), match[2]
    return number / 1000 if suffix == "m" else number * _SUFFIXES[suffix]


def _quantity(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not re.match(QUANTITY_PATTERN, str(value)):
        raise PydanticCustomError(
            "quantity", "must be a quantity such as 2, 500m or 16Gi, not {value}", {"value": repr(value)}
        )
    return str(value)


Quantity = Annotated[
    str,
    BeforeValidator(_quantity),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "maxLength": 24,
        }
    ),
]
"""A Kubernetes quantity, kept as written; an integer is accepted and becomes its text."""

ObjectName = Annotated[str, StringConstraints(pattern=DNS_SUBDOMAIN_PATTERN, max_length=253)]
"""The name of another Kubernetes object in the same namespace."""

ServedName = Annotated[str, StringConstraints(pattern=SERVED_NAME_PATTERN, max_length=128)]
"""A name that clients put into "model"; no "@", because event topics separate their parts with it."""

DecimalText = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=22)]
"""A decimal number that is not negative, as text: JSON's numbers would round it."""

LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY_PATTERN, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE_PATTERN, max_length=63)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME_PATTERN, max_length=128)]
Image = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9._:/@-]*$", max_length=512)]

Labels = Annotated[dict[str, LabelValue], Field(max_length=32)]
Annotations = Annotated[dict[str, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=32)]

Percent = Annotated[int, Field(ge=0, le=100)]
PositiveInt32 = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _power_friendly(value: int) -> int:
    if value % 16:
        raise PydanticCustomError("block_size", "must be a multiple of 16, not {value}", {"value": value})
    return value


BlockSize = Annotated[int, Field(ge=16, le=256, multiple_of=16), AfterValidator(_power_friendly)]
"""Slots of a KV block."""


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "write an IANA name such as Europe/Berlin or UTC"
        raise PydanticCustomError(
            "time_zone", "{name} is no time zone that is known here; {hint}", {"name": repr(name), "hint": hint}
        ) from None
    return name


TimeZone = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+/-]*$"), AfterValidator(_known_zone)
]
"""An IANA name. The API server sees its form only; that it exists is for whoever has the time zones' rules."""
