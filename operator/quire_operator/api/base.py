"""What every API model shares: strictness, camelCase, cross-field rules with their CEL twins, and the not-yet marker.

A rule that spans fields is written once as a `Rule`: `check` decides here, `cel` decides in the API server, both with the same
message. This module must not know any particular resource.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

RULE_BROKEN = "rule_broken"
NOT_YET_KEY = "x-quire-not-yet"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One statement about several fields of one object, for pydantic and for the API server."""

    cel: str
    """The CEL expression; `self` is the object. All lists, maps and strings that it walks need an upper bound."""
    check: Callable[[Any], bool]
    """The same statement about the parsed model."""
    message: str
    """What is wrong and what to write instead."""
    field: str = ""
    """The camelCase field to blame, relative to the object; empty blames the object."""


@dataclass(frozen=True)
class NotYet:
    """Field metadata: a value other than the default is refused, because the part that would honour it does not exist."""

    feature: str
    """What is missing, as it reads after "needs"."""
    except_for: tuple[str, ...] = ()
    """Values that there is a part for."""

    def served(self, joint: str) -> str:
        """`except_for`, which is not empty, in words: a, b `joint` c."""
        *others, last = self.except_for
        return f"{', '.join(others)} {joint} {last}" if others else last

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        which = f"Other values than {self.served('and')} are refused" if self.except_for else "Refused"
        return {**handler(core), NOT_YET_KEY: f"{which} by this version: it needs {self.feature}."}


class ApiModel(BaseModel):
    """A strict, immutable, camelCase object that knows every one of its fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        use_attribute_docstrings=True,
        validate_default=False,
        serialize_by_alias=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        for rule in self.rules:
            if not rule.check(self):
                raise PydanticCustomError(RULE_BROKEN, "{rule}", {"rule": rule.message, "field": rule.field})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema["x-kubernetes-validations"] = [_cel_rule(rule) for rule in cls.rules]
        return schema


def _cel_rule(rule: Rule) -> dict[str, str]:
    entry = {"rule": rule.cel, "message": rule.message}
    if rule.field:
        entry["fieldPath"] = f".{rule.field}"
    return entry
