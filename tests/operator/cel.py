"""A stand-in for the API server's CEL: applies a schema's defaults, then evaluates every rule at every object."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import celpy

from quire_operator.api.crds.definitions import resource_schema
from quire_operator.api.resource import Kind
from quire_operator.api.types import quantity_value

Schema = dict[str, Any]


def with_defaults(schema: Schema, value: Any) -> Any:
    """`value` as the API server stores it."""
    if isinstance(value, dict) and "properties" in schema:
        filled = {
            name: with_defaults(inner, value[name] if name in value else json.loads(json.dumps(inner["default"])))
            for name, inner in schema["properties"].items()
            if name in value or "default" in inner
        }
        return {**value, **filled}
    if isinstance(value, list):
        return [with_defaults(schema["items"], item) for item in value]
    return value


def objects(schema: Schema, value: Any) -> Iterator[tuple[Schema, Any]]:
    """Every (schema, value) below."""
    yield schema, value
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from objects(inner, value[name])
    elif isinstance(value, list):
        for item in value:
            yield from objects(schema["items"], item)


def is_greater(left: Decimal, right: Decimal) -> Any:
    """Kubernetes' method of the same name."""
    return celpy.celtypes.BoolType(left > right)


def is_sorted(items: Any) -> Any:
    """Kubernetes' method of the same name."""
    return celpy.celtypes.BoolType(list(items) == sorted(items))


def holds(rule: str, value: Any) -> bool:
    """Whether a CEL rule holds for `self`."""
    functions: dict[str, Callable[..., Any]] = {
        "quantity": lambda text: quantity_value(str(text)),
        "isGreaterThan": is_greater,
        "isSorted": is_sorted,
        "contains": lambda text, part: celpy.celtypes.BoolType(part in text),
    }
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule), functions=functions)
    return bool(program.evaluate({"self": celpy.json_to_cel(value)}))


def broken_in_cel(kind: Kind, document: Schema) -> list[str]:
    """Messages of the rules that the API server would report."""
    schema = resource_schema(kind)
    stored = with_defaults(schema, document)
    return sorted(
        rule["message"]
        for node, value in objects(schema, stored)
        for rule in node.get("x-kubernetes-validations", [])
        if not holds(rule["rule"], value)
    )
