"""Filters a prompt: the call goes on as it is, goes on with other texts, or is refused."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from quire_contract.openai.errors import ApiError
from quire_router.filtering.bodies import Path, Place, place_name, texts_of, with_texts
from quire_router.filtering.json_text import JsonTextFilter
from quire_router.filtering.rules import Applied, SizeRule
from quire_router.filtering.text_filter import Rule, TextFilter

CODE_CONTENT_FILTER = "content_filter"


class Hit(NamedTuple):
    """A filter that found something, and where first."""

    name: str
    action: str
    place: str


class Filtered(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a body."""

    body: bytes
    texts: list[str]
    """All of them as they go on, for a moderator."""
    hits: list[Hit]


def filter_prompt(body: bytes, applied: Applied) -> Filtered:
    """Look through all texts of a body. Pure and possibly slow; a body that is to be refused has a hit with action "block"."""
    places = texts_of(body)
    hits = _sizes(places, applied.sizes)
    changed: dict[Path, str] = {}
    for place in places if applied.rules else ():
        found = [rule for rule in applied.rules if _may_find(rule, place)]
        if not found:
            continue
        text, seen = _filtered(place, found)
        hits += [Hit(rule.name, rule.action, place_name(place.path)) for rule in seen]
        if any(rule.action == "block" for rule in seen):
            break
        if any(rule.action == "redact" for rule in seen):
            changed[place.path] = text
    if changed and not any(hit.action == "block" for hit in hits):
        body = with_texts(body, changed)
    return Filtered(body=body, texts=[changed.get(place.path, place.text) for place in places if place.text], hits=hits)


def refusal(name: str, place: str | None) -> ApiError:
    """400 as Azure and OpenAI's clients know it. What was found is not told."""
    where = f"{place}: " if place else ""
    return ApiError(
        400,
        f"{where}the prompt was refused by the content filter {name!r}. Change the text and try again.",
        param=place,
        code=CODE_CONTENT_FILTER,
    )


def _may_find(rule: Rule, place: Place) -> bool:
    """One look of linear time: most texts have nothing, and of most rules it is all that is done."""
    data = place.text.encode()
    return (place.is_json and "\\" in place.text) or any(finder.may_occur(data) for finder in rule.finders)


def _filtered(place: Place, rules: Sequence[Rule]) -> tuple[str, list[Rule]]:
    seen: dict[str, Rule] = {}

    def note(rule: Rule) -> None:
        seen.setdefault(rule.name, rule)

    kind = JsonTextFilter if place.is_json else TextFilter
    return kind(rules, note).whole(place.text), list(seen.values())


def _sizes(places: Sequence[Place], sizes: Sequence[SizeRule]) -> list[Hit]:
    if not sizes:
        return []
    total = sum(len(place.text) for place in places)
    return [Hit(size.name, "block" if size.blocks else "flag", "") for size in sizes if total > size.max_chars]
