"""multipleOf in schemas: what is cheap passes, what would hold up everybody's grammars is refused with its place."""

from typing import Any

import pytest

from quire_contract.openai.errors import ApiError
from quire_contract.openai.multiples import check_multiples, check_multiples_in_text


def number(value: Any) -> dict[str, Any]:
    return {"type": "number", "multipleOf": value}


@pytest.mark.parametrize(
    "value", [1, 2, 5, 0.01, 0.25, 1e-6, 7, 60, 1000, 3600, 86_400, 65_536, 10**9, 1e20, 99_991, 0.00123, 12.0]
)
def test_numbers_of_few_digits_are_taken_whatever_their_size(value: float) -> None:
    check_multiples("f", {"properties": {"a": number(value)}})
    check_multiples_in_text("f", f'start: %json {{"multipleOf": {value}}}')


@pytest.mark.parametrize("value", [100_001, 1_000_003, 2**20, 2**31, 123.4567, 3e-9 + 1])
def test_numbers_of_many_digits_are_refused_with_their_place(value: float) -> None:
    schema = {"type": "object", "properties": {"price": {"anyOf": [{"type": "null"}, number(value)]}}}

    with pytest.raises(ApiError) as refusal:
        check_multiples("response_format.json_schema.schema", schema)
    with pytest.raises(ApiError) as of_text:
        check_multiples_in_text("tools", f'start: %json {{"multipleOf" : {value}}}')

    assert (refusal.value.status, refusal.value.param) == (400, "response_format.json_schema.schema")
    assert "properties.price.anyOf[1].multipleOf" in refusal.value.message
    assert of_text.value.param == "tools"


def test_what_is_combined_counts_together() -> None:
    combined = {"allOf": [number(997), {"multipleOf": 991}]}
    referred = {"$defs": {"a": number(991)}, "multipleOf": 9.97, "$ref": "#/$defs/a"}

    for schema in (combined, referred):
        with pytest.raises(ApiError, match="least common multiple"):
            check_multiples("f", schema)
    with pytest.raises(ApiError, match="least common multiple"):
        check_multiples_in_text("f", 'start: %json {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}')
    check_multiples("f", {"properties": {"a": number(997), "b": number(991)}})
    check_multiples("f", {"allOf": [number(0.01), number(25), number(86_400), number(7)]})


@pytest.mark.parametrize("value", [0, -5, "many", True, None, {"type": "string"}, [3], 1e300, 1e-300])
def test_what_is_no_such_number_is_left_to_the_library(value: Any) -> None:
    check_multiples("f", {"properties": {"multipleOf": value}, "multipleOf": value, "allOf": []})
