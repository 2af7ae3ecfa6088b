"""Walks the values of a chart: every setting that a person can give, by its path."""

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]


def leaves(values: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is not a map, and every empty map, with its path."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def nested(path: Path, value: Any) -> dict[str, Any]:
    """Values in which only `path` is set."""
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base` as Helm does it: maps are merged, all else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = overlaid(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def at(values: Mapping[str, Any], path: Path) -> Any:
    """The value at `path`."""
    for key in path:
        values = values[key]
    return values
