"""Typed reads from a parsed config.json, with errors that name the file, the field and the value found.

Knows JSON values only; what the fields mean is its callers' business.
"""

from typing import Any

from quire_worker.errors import LoadError


class Fields:
    """A JSON object and where it came from. Every read raises LoadError if the value cannot be used."""

    def __init__(self, raw: dict[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def error(self, name: str, why: str) -> LoadError:
        """`config.json: hidden_act "gelu" is not supported; supported: silu`."""
        value = self.raw.get(name)
        shown = repr(value) if len(repr(value)) <= 200 else repr(value)[:200] + "…"
        return LoadError(f"{self.source}: {name} {shown} {why}")

    def integer(self, name: str, default: int | None = None) -> int:
        """A null counts as absent, as transformers treats it."""
        value = self.raw.get(name)
        if value is None:
            if default is None:
                raise LoadError(f"{self.source}: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "must be an integer")
        return value

    def positive_int(self, name: str, default: int | None = None) -> int:
        value = self.integer(name, default)
        if value < 1:
            raise self.error(name, "must be at least 1")
        return value

    def optional_positive_int(self, name: str, default: int | None) -> int | None:
        """An explicit null means None, absence the default."""
        if name in self.raw and self.raw[name] is None:
            return None
        return self.positive_int(name, default) if name in self.raw else default

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        if value is None:
            if default is None:
                raise LoadError(f"{self.source}: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value
