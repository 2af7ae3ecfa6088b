"""Where a pod answers. This module must not know who asks."""

from collections.abc import Mapping
from typing import Any


def address_of(pod: Mapping[str, Any]) -> str | None:
    """Its IP as it stands in a URL; None while it has none."""
    address = (pod.get("status") or {}).get("podIP")
    return f"[{address}]" if address and ":" in address else address
