"""Whether a live object already is what we want: does it hold every field that we would apply?

Servers add defaults and write quantities in their own way; both count as equal. Pure; this module must not know requests.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from quire_contract import names
from quire_operator.api.types import quantity_value

_QUANTITIES = frozenset({"limits", "requests", "capacity", "sizeLimit", "storage", "divisor", "cpu", "memory"})
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[MGTP]|[KMGTP]i)?")
_HASH_LENGTH = 16


def applied_hash(manifest: Mapping[str, Any]) -> str:
    """A digest of what we want, for the annotation that tells a later operator that it was applied."""
    return hashlib.sha256(msgspec.json.encode(manifest, order="deterministic")).hexdigest()[:_HASH_LENGTH]


def with_hash(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as it is applied: annotated with its own digest."""
    meta = manifest["metadata"]
    annotations = {**(meta.get("annotations") or {}), names.ANNOTATION_APPLIED: applied_hash(manifest)}
    return {**manifest, "metadata": {**meta, "annotations": annotations}}


def holds(live: Any, wanted: Any, key: str = "") -> bool:
    """Whether `live` has all of `wanted`; `key` is the field it stands under.

    Lists of named things may hold more than we want, by others' doing, and may be in another order; other lists are equal item by item.
    """
    if isinstance(wanted, Mapping):
        return _holds_mapping(live, wanted, key)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return _holds_list(live, wanted, key)
    if live == wanted and isinstance(live, bool) == isinstance(wanted, bool):
        return True
    return key in _QUANTITIES and _same_quantity(live, wanted)


def _holds_mapping(live: Any, wanted: Mapping[str, Any], key: str) -> bool:
    if not isinstance(live, Mapping):
        return live is None and not wanted
    inner = key if key in _QUANTITIES else ""
    return all(value is None or holds(live.get(name), value, inner or name) for name, value in wanted.items())


def _holds_list(live: Any, wanted: Sequence[Any], key: str) -> bool:
    if not isinstance(live, Sequence) or isinstance(live, str):
        return live is None and not wanted
    if wanted and all(isinstance(item, Mapping) and "name" in item for item in wanted):
        by_name = {item.get("name"): item for item in live if isinstance(item, Mapping)}
        if len(by_name) == len(live):
            return all(item["name"] in by_name and holds(by_name[item["name"]], item) for item in wanted)
    return len(live) == len(wanted) and all(holds(left, right, key) for left, right in zip(live, wanted, strict=True))


def _same_quantity(live: Any, wanted: Any) -> bool:
    texts = (str(live), str(wanted))
    return all(_QUANTITY.fullmatch(text) for text in texts) and quantity_value(texts[0]) == quantity_value(texts[1])
