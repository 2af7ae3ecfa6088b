"""`multipleOf` in JSON schemas: bounded, because what follows a number's digits has as many states as the number is large.

A grammar of multiples of 1,000,003 takes eight seconds to compile, one of multiples of 2**30 for ever; few of them keep all threads that
compile from everybody else. Powers of ten cost nothing (0.01 is as cheap as 1,000), and where conditions are combined their least common
multiple counts. Knows no grammar library: what it refuses was measured with llguidance.
"""

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from math import lcm
from typing import Any

from quire_contract.openai.errors import invalid

MAX_DIGITS = 100_000
"""Of a number without its powers of ten, hence of its states: a third of a second to compile."""
_KEY = "multipleOf"
_COMBINING = frozenset({"allOf", "$ref", "$dynamicRef"})
_IN_TEXT = re.compile(r'"multipleOf"\s*:\s*(-?\d[\d.eE+-]*)')
_MAX_EXPONENT = 30
"""Beyond, the library refuses the number itself, at once."""


def check_multiples(field: str, schema: Any) -> None:
    """400 for a schema whose multiples would take too long to compile; its message names the place in the schema."""
    found: list[tuple[int, int]] = []
    combines = False
    for path, key, value in _entries(schema):
        combines = combines or key in _COMBINING
        if key == _KEY and (number := _scaled(value)) is not None:
            _check_one(field, path, value, number[0])
            found.append(number)
    if combines:
        _check_together(field, found)


def check_multiples_in_text(field: str, grammar: str) -> None:
    """The same for the schemas inside a grammar's text."""
    found = []
    for match in _IN_TEXT.finditer(grammar):
        if (number := _scaled(match[1])) is not None:
            _check_one(field, "", match[1], number[0])
            found.append(number)
    if any(f'"{key}"' in grammar for key in _COMBINING):
        _check_together(field, found)


def _entries(schema: Any) -> Iterator[tuple[str, str, Any]]:
    """Path, key and value of everything in objects; the depth is bounded, and so is the size."""
    todo = [("", schema)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            for key, child in value.items():
                yield path, key, child
                if isinstance(child, dict | list):
                    todo.append((f"{path}.{key}", child))
        elif isinstance(value, list):
            todo += [(f"{path}[{index}]", child) for index, child in enumerate(value)]


def _scaled(value: Any) -> tuple[int, int] | None:
    """(digits, exponent) of a positive number, digits * 10**exponent; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(value if isinstance(value, str) else repr(value)).normalize()
    except InvalidOperation:
        return None
    if not number.is_finite() or number <= 0 or abs(number.adjusted()) > _MAX_EXPONENT:
        return None
    _, digits, exponent = number.as_tuple()
    return int("".join(map(str, digits))), int(exponent)


def _check_one(field: str, path: str, value: Any, digits: int) -> None:
    if digits > MAX_DIGITS:
        place = f"{path.lstrip('.')}.{_KEY}" if path else _KEY
        raise invalid(
            field,
            f"{place[:200]}: {str(value)[:40]} takes too long to compile: without its powers of ten it may be at most {MAX_DIGITS}; "
            "leave it out and check the answer",
        )


def _check_together(field: str, found: list[tuple[int, int]]) -> None:
    """What is combined has to be a multiple of all: as nobody follows references here, all of the schema's count."""
    lowest = min((exponent for _, exponent in found), default=0)
    together = 1
    for digits, exponent in found:
        together = lcm(together, digits * 10 ** (exponent - lowest))
        rest = together
        while rest % 10 == 0:
            rest //= 10
        if rest > MAX_DIGITS:
            raise invalid(
                field,
                f"{_KEY}: a schema with allOf or references may hold numbers whose least common multiple, without its powers of ten, is at "
                f"most {MAX_DIGITS}; leave some out and check the answer",
            )
