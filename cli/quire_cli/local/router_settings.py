"""The file with the router's settings, read and checked as the router will: what it would refuse is told here, with file and line.

This module must not know what settings do.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from quire_cli.errors import CommandError
from quire_cli.manifest_files import Document, read_documents
from quire_contract.router_settings import RouterSettingsEntry, settings_problem
from quire_operator.api.validation import Problem
from quire_router.filtering.finder import PatternError
from quire_router.filtering.rules import FilterSet

_WRAPPERS = ("router", "settings")
"""Levels that the chart's values have above the sections."""
_TYPE_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "an object",
    "null": "nothing",
}
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_ENUM = re.compile(r"Invalid enum value (.*)", re.DOTALL)
_TYPES = re.compile(r"Expected `(.*)`, got `(.*)`")


def read_settings(path: Path) -> RouterSettingsEntry:
    """Raises CommandError that names file, line, field and fix."""
    documents = read_documents(path)
    if len(documents) > 1:
        raise CommandError(f"{path}: holds {len(documents)} documents; write all settings into one")
    document = documents[0] if documents else Document(file=path, data={}, lines={})
    try:
        settings = msgspec.convert(document.data, RouterSettingsEntry)
    except msgspec.ValidationError as error:
        raise CommandError(document.describe(_in_words(str(error)))) from None
    if problem := settings_problem(settings) or _pattern_problem(settings):
        raise CommandError(f"{document.place(problem.partition(':')[0])}: {problem}")
    return settings


def _pattern_problem(settings: RouterSettingsEntry) -> str | None:
    """What the router's own engine says of the filters' expressions."""
    try:
        FilterSet(settings.filters)
    except PatternError as error:
        return str(error)
    return None


def _in_words(text: str) -> Problem:
    """msgspec's message with the field first and what to write instead; one that we do not know stays as it is."""
    at = _AT.search(text)
    path, what = (at.group(1), text[: at.start()]) if at else ("", text)
    if found := _UNKNOWN.fullmatch(what):
        return Problem(path=f"{path}.{found.group(1)}".lstrip("."), message=_unknown_field(path, found.group(1)))
    if found := _MISSING.fullmatch(what):
        return Problem(path=f"{path}.{found.group(1)}".lstrip("."), message="is required")
    if found := _ENUM.fullmatch(what):
        return Problem(path=path, message=_wrong_choice(path, found.group(1)))
    if found := _TYPES.fullmatch(what):
        wanted, got = (" or ".join(_TYPE_WORDS.get(one, one) for one in part.split(" | ")) for part in found.groups())
        return Problem(path=path, message=f"must be {wanted}, not {got}")
    return Problem(path=path, message=what)


def _unknown_field(path: str, field: str) -> str:
    kind = _type_at(path)
    known = [one.name for one in kind.fields] if isinstance(kind, msgspec.inspect.StructType) else []
    if not path and field in _WRAPPERS:
        return f"unknown field; this file holds what the chart has below router.settings: {', '.join(known)}"
    near = _nearest(field, known)
    return f"unknown field; did you mean '{near}'?" if near else f"unknown field; known here: {', '.join(known)}"


def _wrong_choice(path: str, shown: str) -> str:
    kind = _type_at(path)
    choices = [str(value) for value in kind.values] if isinstance(kind, msgspec.inspect.LiteralType) else []
    near = _nearest(shown, choices)
    hint = f"; did you mean {near}?" if near else ""
    return f"must be one of {', '.join(choices)}, not {shown[:80]}{hint}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    folded = {_folded(choice): choice for choice in known}
    near = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _type_at(path: str) -> Any:
    """The type of a field of the settings, such as `filters[0].pii[0]`; None if there is no such field."""
    kind: Any = msgspec.inspect.type_info(RouterSettingsEntry)
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(kind, msgspec.inspect.UnionType):
            kind = next((one for one in kind.types if isinstance(one, msgspec.inspect.StructType)), None)
        if isinstance(kind, msgspec.inspect.ListType):
            kind = kind.item_type
        elif isinstance(kind, msgspec.inspect.StructType):
            kind = next((one.type for one in kind.fields if one.name == part), None)
    if isinstance(kind, msgspec.inspect.UnionType):
        return next((one for one in kind.types if isinstance(one, msgspec.inspect.StructType)), None)
    return kind
