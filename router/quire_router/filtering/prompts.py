"""Filters a prompt: the call goes on as it is, goes on with other texts, or is refused."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from quire_contract.openai.errors import ApiError
from quire_router.filtering.bodies import Path, Place, place_name, texts_of, with_texts
from quire_router.filtering.json_text import JsonTextFilter
from quire_router.filtering.rules import Applied, SizeRule
from quire_router.filtering.text_filter import Rule, TextFilter
from quire_router.filtering.token_ids import TokenText

CODE_CONTENT_FILTER = "content_filter"
CODE_UNREADABLE = "unreadable_prompt"


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
    has_ids: bool = False
    """Whether a part of it is token ids: only models whose tokenizers have read them may get it."""


def filter_prompt(body: bytes, applied: Applied, tokens: Sequence[TokenText] = ()) -> Filtered:
    """Look through all texts of a body; what token ids say, each of `tokens` tells in its own words. Pure and possibly slow; a body that
    is to be refused has a hit with action "block". ApiError 400 for ids that nobody can read and that must not pass unread."""
    found = texts_of(body)
    ids = {place.path for place in found if place.ids is not None}
    blind = next((p for p in found if not p.is_readable or (p.ids is not None and not tokens)), None)
    if blind is not None and applied.needs_text is not None:
        raise unreadable(applied.needs_text, blind)
    filtered = _looked_through(body, list(_read(found, tokens)), applied, tokens, ids)
    return msgspec.structs.replace(filtered, has_ids=True) if ids else filtered


def _read(places: Iterable[Place], tokens: Sequence[TokenText]) -> Iterable[Place]:
    """Every place with its text: of token ids one for each way to read them."""
    for place in places:
        if place.ids is None:
            yield place
        else:
            for one in tokens:
                yield place._replace(text=one.text(place.ids, place_name(place.path)))


def _looked_through(
    body: bytes, places: list[Place], applied: Applied, tokens: Sequence[TokenText], ids: set[Path]
) -> Filtered:
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
        redacting = next((rule for rule in seen if rule.action == "redact"), None)
        if redacting is not None and place.path in ids and len(tokens) > 1:
            hits.append(Hit(redacting.name, "block", place_name(place.path)))  # no ids mean the same to all of them
            break
        if redacting is not None:
            changed[place.path] = text
    if changed and not any(hit.action == "block" for hit in hits):
        body = with_texts(body, {path: tokens[0].ids(text) if path in ids else text for path, text in changed.items()})
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


def unreadable(name: str, place: Place) -> ApiError:
    """400 for what a filter must see and nobody here can read."""
    param = place_name(place.path)
    why = ": no worker of the model has told its tokenizer" if place.ids is not None else ""
    kind = "token ids" if place.ids is not None else "embeddings"
    message = f"{param}: is {kind}, which the content filter {name!r} cannot read{why}. Send the prompt as text."
    return ApiError(400, message, param=param, code=CODE_UNREADABLE)


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
    longest: dict[Path, int] = {}
    for place in places:  # token ids are there once for each way to read them
        longest[place.path] = max(len(place.text), longest.get(place.path, 0))
    total = sum(longest.values())
    return [Hit(size.name, "block" if size.blocks else "flag", "") for size in sizes if total > size.max_chars]
