"""Bodies by a JSON Schema, and broken ones: what `fuzz_server` and its test send. All randomness comes from the generator that is given."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Any
Schema = Mapping[str, Any]
TEXTS = (
    "",
    " ",
    "hi",
    "5 km",
    "a b c",
    "\u00e9\u4e2d\U0001f600",
    "<|im_end|>",
    "\x00\x1f",
    '"\\',
    "{{ x }}",
    "null",
    "\u202e",
    "x" * 300,
)
NUMBERS = (0, 1, -1, 2, 7, 0.5, 1e-9, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**40)
MAX_DEPTH = 6


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes values that fit a schema of one document."""

    components: Mapping[str, Schema]
    hints: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Values by property: most of the time one of them is taken, so that bodies get past the first check."""

    def make(self, schema: Schema, rng: random.Random, depth: int = 0) -> Json:
        """A value that fits."""
        schema = self._resolved(schema)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if "anyOf" in schema:
            return self.make(rng.choice(schema["anyOf"]), rng, depth + 1)
        by_type: Mapping[str, Callable[[Schema, random.Random, int], Json]] = {
            "string": self._text,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda _schema, rng, _depth: rng.random() < 0.5,
            "null": lambda _schema, _rng, _depth: None,
            "array": self._array,
            "object": self._object,
        }
        made = by_type.get(schema.get("type", ""))
        return any_json(rng, depth) if made is None else made(schema, rng, depth)

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self.components[schema["$ref"].rpartition("/")[2]]
        return schema

    def _text(self, schema: Schema, rng: random.Random, depth: int) -> str:
        low, high = schema.get("minLength", 0), schema.get("maxLength", 1000)
        if "pattern" in schema:
            return str(rng.choice((0, 1, 17, 299, 10**9)))
        return rng.choice([text for text in TEXTS if low <= len(text) <= high])

    def _integer(self, schema: Schema, rng: random.Random, depth: int) -> int:
        low, high = schema.get("minimum", -(2**31)), schema.get("maximum", 2**31)
        near = (low, high, low + 1, high - 1, 0, 1, 2, 3)
        return rng.choice([number for number in near if low <= number <= high])

    def _number(self, schema: Schema, rng: random.Random, depth: int) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1e9))
        high = schema.get("maximum", 1e9)
        near = (low, high, (low + high) / 2, low + 1e-6, 0.0, 0.7, 1.0)
        inside = [number for number in near if low <= number <= high]
        return rng.choice([number for number in inside if number > low or "exclusiveMinimum" not in schema])

    def _array(self, schema: Schema, rng: random.Random, depth: int) -> list[Json]:
        low = schema.get("minItems", 0)
        high = min(schema.get("maxItems", 3), low + (3 if depth < MAX_DEPTH else 0))
        return [self.make(schema.get("items", {}), rng, depth + 1) for _ in range(rng.randint(low, high))]

    def _object(self, schema: Schema, rng: random.Random, depth: int) -> dict[str, Json]:
        properties = schema.get("properties", {})
        wanted = set(schema.get("required", ()))
        chance = 0.2 if depth == 0 else 0.5
        made = {
            name: self._property(name, each, rng, depth + 1)
            for name, each in properties.items()
            if name in wanted
            or (depth < MAX_DEPTH and rng.random() < (0.9 if depth and name in self.hints else chance))
        }
        if not properties and depth < MAX_DEPTH:
            others = schema.get("additionalProperties", {})
            for _ in range(rng.randint(0, 2)):
                name = self._text(schema.get("propertyNames", {}), rng, depth)
                made[name] = self.make(others if isinstance(others, dict) else {}, rng, depth + 1)
        return made

    def _property(self, name: str, schema: Schema, rng: random.Random, depth: int) -> Json:
        fitting = [value for value in self.hints.get(name, ()) if self._may_be(schema, value)]
        if fitting and rng.random() < 0.95:
            return rng.choice(fitting)
        return self.make(schema, rng, depth)

    def _may_be(self, schema: Schema, value: Json) -> bool:
        """Whether a hint is of a type that a schema lets through, and none of its objects lacks what that requires: properties of one name
        are not the same everywhere."""
        schema = self._resolved(schema)
        if "anyOf" in schema:
            return any(self._may_be(choice, value) for choice in schema["anyOf"])
        if schema.get("type") != _type_of(value):
            return False
        if isinstance(value, list):
            items = schema.get("items", {})
            return not items or all(self._may_be(items, item) for item in value)
        return not isinstance(value, dict) or all(name in value for name in schema.get("required", ()))


def _type_of(value: Json) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def any_json(rng: random.Random, depth: int = 0) -> Json:
    """Any JSON value."""
    kind = rng.randrange(4 if depth >= MAX_DEPTH else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind in (2, 3):
        return rng.choice(TEXTS)
    items = [any_json(rng, depth + 1) for _ in range(rng.randint(0, 2))]
    return items if kind == 4 else {rng.choice(TEXTS): item for item in items}


def mutated(body: Json, rng: random.Random) -> Json:
    """The body with one to three places changed: replaced, removed, doubled or nested."""
    changed = json.loads(json.dumps(body))
    for _ in range(rng.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            return any_json(rng)
        holder, key = rng.choice(places)
        action = rng.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1:
            holder[key] = [holder[key]]
        elif action == 2:
            holder[key] = {"": holder[key]}
        elif action == 3 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = any_json(rng)
    return changed


def _places(value: Json) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        at = todo.pop()
        keys: Sequence[Any] = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ()
        found += [(at, key) for key in keys]
        todo += [at[key] for key in keys]
    return found


def broken(data: bytes, rng: random.Random) -> bytes:
    """The bytes with something in them that JSON does not have, or has in unhealthy amounts."""
    at = rng.randrange(len(data) + 1)
    inserts = (
        b"\xff\xfe",
        b"\x00",
        b"NaN",
        b"1e999",
        b"\\ud800",
        b"{",
        b"]",
        b",",
        b'"',
        b"9" * 5000,
        b"[" * 20_000,
        b" " * 5000,
    )
    match rng.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[rng.randrange(len(data) + 1) :]
        case _:
            return data[:at] + rng.choice(inserts) + data[at:]
