"""From a parsed YAML document to a model, or to a list of problems that a person can act on.

A problem names the field by its path in the document and says what to write instead. This module must not know files or line numbers.
"""

import difflib
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from quire_operator.api.base import RULE_BROKEN, NotYet
from quire_operator.api.inference_service import INFERENCE_SERVICE, InferenceService
from quire_operator.api.model_route import MODEL_ROUTE
from quire_operator.api.operations import CLOCK_PATTERN
from quire_operator.api.resource import API_VERSION, Kind
from quire_operator.api.tenant import RFC3339_PATTERN, TENANT
from quire_operator.api.types import DECIMAL_PATTERN, DNS_LABEL_PATTERN, SERVED_NAME_PATTERN

KINDS: tuple[Kind, ...] = (INFERENCE_SERVICE, MODEL_ROUTE, TENANT)
_JSON_NAMES = {dict: "an object", list: "a list"}
_TOO_LONG = "is too long: at most {max_length}"
_TOO_SHORT = "is too short: at least {min_length}"
_WHOLE = "must be a whole number, not {shown}"
_MESSAGES = {
    "missing": "is required",
    "string_too_long": _TOO_LONG,
    "too_long": _TOO_LONG,
    "string_too_short": _TOO_SHORT,
    "too_short": _TOO_SHORT,
    "greater_than_equal": "must be at least {ge}, not {shown}",
    "less_than_equal": "must be at most {le}, not {shown}",
    "multiple_of": "must be a multiple of {multiple_of}, not {shown}",
    "literal_error": "must be {expected}, not {shown}",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "string_type": "must be text, not {shown}",
    "bool_type": "must be true or false, not {shown}",
    "tuple_type": "must be a list, not {shown}",
    "model_type": "must be an object, not {shown}",
    "model_attributes_type": "must be an object, not {shown}",
    "dict_type": "must be an object, not {shown}",
}
_PATTERN_WORDS = {
    CLOCK_PATTERN: "write a local time as hh:mm in quotes, from '00:00' to '23:59'",
    DECIMAL_PATTERN: "write a decimal number such as 12.50",
    DNS_LABEL_PATTERN: "use lower-case letters, digits and '-', the first a letter and the last none of '-'",
    RFC3339_PATTERN: "write a time such as 2027-01-31T00:00:00Z",
    SERVED_NAME_PATTERN: "use letters, digits and . _ : / -, the first and last a letter or digit",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a resource."""

    path: str
    """The field, as in spec.model.aliases[0]; "" for the document."""
    message: str
    """What is wrong and the fix."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidResourceError(ValueError):
    """A document that is not a resource Quire can carry out."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class NotYetSupportedError(InvalidResourceError):
    """The document is valid, but asks for parts that this version does not have."""


def parse_service(document: Any) -> InferenceService:
    """An InferenceService from a YAML or JSON document; its status is not read. Raises InvalidResourceError."""
    service = parse_resource(document, INFERENCE_SERVICE)
    assert isinstance(service, InferenceService)
    return service


def parse_resource(document: Any, kind: Kind) -> BaseModel:
    """A resource of `kind`. Nulls count as absent, as in the API server. Raises InvalidResourceError with every problem."""
    if not isinstance(document, dict):
        raise InvalidResourceError(
            [Problem(path="", message=f"must be an object of kind {kind.kind}, not {_shown(document)}")]
        )
    for key, expected in (("apiVersion", API_VERSION), ("kind", kind.kind)):
        if document.get(key) != expected:
            raise InvalidResourceError(
                [Problem(path=key, message=f"must be {expected}, not {_shown(document.get(key))}")]
            )
    body = _without_nulls({key: value for key, value in document.items() if key != "status"})
    try:
        model: BaseModel = kind.model.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise InvalidResourceError([_problem(kind.model, detail) for detail in error.errors()]) from None
    return model


def unsupported_fields(model: BaseModel, path: str = "") -> list[Problem]:
    """Fields whose value needs a part that does not exist yet. Fields at their default ask for nothing."""
    return [
        Problem(path=where, message=f"not supported by this version: it needs {marker.feature}; {_remedy(marker)}")
        for where, marker in _not_yet(model, path)
    ]


def _remedy(marker: NotYet) -> str:
    return f"write {marker.served('or')}, or remove it" if marker.except_for else "remove it"


def _not_yet(model: BaseModel, path: str) -> Iterator[tuple[str, NotYet]]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        where = f"{path}.{field.alias or name}".lstrip(".")
        markers = [item for item in field.metadata if isinstance(item, NotYet)]
        if markers and value not in (field.get_default(call_default_factory=True), *markers[0].except_for):
            yield where, markers[0]
        elif isinstance(value, BaseModel):
            yield from _not_yet(value, where)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _problem(root: type[BaseModel], detail: ErrorDetails) -> Problem:
    loc = _document_loc(root, detail["loc"])
    context = detail.get("ctx", {})
    if detail["type"] == RULE_BROKEN:
        field = context.get("field")
        return Problem(path=format_path((*loc, field) if field else loc), message=str(context["rule"]))
    if detail["type"] == "extra_forbidden":
        return Problem(path=format_path(loc), message=_unknown_field(root, loc))
    return Problem(path=format_path(loc), message=_plain_message(detail, context))


def _plain_message(detail: ErrorDetails, context: dict[str, Any]) -> str:
    """Our words for pydantic's errors; a text that we do not know stays pydantic's."""
    template = _MESSAGES.get(detail["type"], detail["msg"])
    value = detail.get("input")
    if detail["type"] == "string_pattern_mismatch":
        return _pattern_message(_shown(value), str(context["pattern"]), str(detail["loc"][-1]))
    text = template.format(shown=_shown(value), **context) if detail["type"] in _MESSAGES else template
    if detail["type"] == "literal_error":
        return text + _closest_literal(value, str(context["expected"]))
    if detail["type"] == "string_type" and isinstance(value, (int, float, bool)):
        return f"{text}; put it in quotes"
    return text


def _pattern_message(shown: str, pattern: str, field: str) -> str:
    """What a value must look like. A digest's place may hold the key itself by mistake, which must not be repeated."""
    if field == "sha256":
        return (
            "must be the SHA-256 of the key, 64 lower-case hexadecimal digits; quire tenant create makes key and digest"
        )
    wanted = _PATTERN_WORDS.get(pattern)
    hint = f"; {wanted}" if wanted else f" (pattern {pattern})"
    return f"{shown} has characters or a form that is not allowed here{hint}"


def _closest_literal(value: Any, expected: str) -> str:
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    near = difflib.get_close_matches(str(value).lower(), [choice.lower() for choice in choices], n=1)
    return next((f"; did you mean {choice}?" for choice in choices if near and choice.lower() == near[0]), "")


def _shown(value: Any) -> str:
    """A value as the document has it, cut short; objects and lists by their kind only."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return _JSON_NAMES[type(value)]
    text = json.dumps(value) if isinstance(value, (bool, int, float)) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_field(root: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    parent = _type_at(root, loc[:-1])
    known = [_alias(parent, name) for name in parent.model_fields] if parent else []
    near = _nearest(str(loc[-1]), known)
    if near:
        return f"unknown field; did you mean '{near}'?"
    elsewhere = [path for path in _all_fields(root, "") if _folded(path.rpartition(".")[2]) == _folded(str(loc[-1]))]
    if elsewhere:
        return f"unknown field; did you mean '{elsewhere[0]}'?"
    return f"unknown field; known here: {', '.join(sorted(known))}"


def _nearest(name: str, known: list[str]) -> str | None:
    folded = {_folded(choice): choice for choice in known}
    near = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=0.7)
    return folded[near[0]] if near else None


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _alias(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].alias or name


def _all_fields(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{_alias(model, name)}".lstrip(".")
        if path.startswith(("metadata", "status", "apiVersion", "kind")):
            continue
        yield path
        inner, is_list = _inner_model(field.annotation)
        if inner is not None and not is_list:
            yield from _all_fields(inner, path)


def _document_loc(root: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """pydantic's location without what is not in the document: "[key]" marks after a map's key."""
    return tuple(part for part in loc if part != "[key]")


def _type_at(root: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, int):
            continue
        assert current is not None
        annotation = next((field.annotation for field in current.model_fields.values() if field.alias == part), None)
        current, _ = _inner_model(annotation)
    return current


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model inside an annotation, through Optional, Annotated and tuple; whether it is in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin = get_origin(annotation)
    if origin in {Union, types.UnionType, Annotated, tuple}:
        for argument in get_args(annotation):
            inner, in_list = _inner_model(argument)
            if inner is not None:
                return inner, in_list or origin is tuple
    return None, False


def format_path(loc: tuple[str | int, ...]) -> str:
    """("spec", "model", "aliases", 0) as spec.model.aliases[0]."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")
