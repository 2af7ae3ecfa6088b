"""The configuration's filters, compiled, and which of them apply to a call. Compiling is slow: once per configuration that differs."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from quire_contract.router_config import RouterConfig, RouterConfigError
from quire_contract.router_settings import FilterEntry, ModerationHook
from quire_router.filtering.finder import Finder, PatternError
from quire_router.filtering.pii import pii_finders
from quire_router.filtering.text_filter import Rule
from quire_router.filtering.words import word_finders

Stage = Literal["prompt", "output"]


class HookRule(msgspec.Struct, frozen=True, kw_only=True):
    """An outside moderator."""

    name: str
    hook: ModerationHook
    may_block: bool
    """Otherwise it only flags."""


class SizeRule(msgspec.Struct, frozen=True, kw_only=True):
    """A bound of a prompt's text."""

    name: str
    max_chars: int
    blocks: bool


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What applies to the prompt, or to the output, of one call."""

    rules: tuple[Rule, ...]
    sizes: tuple[SizeRule, ...]
    hooks: tuple[HookRule, ...]
    needs_text: str | None = None
    """The name of the first that lets no prompt pass that cannot be read; None: all of them would."""

    def __bool__(self) -> bool:
        return bool(self.rules or self.sizes or self.hooks)


class FilterSet:
    """All filters of one configuration."""

    def __init__(self, entries: Sequence[FilterEntry]) -> None:
        """PatternError that names the field."""
        self._entries = [(entry, _rule(entry, f"filters[{i}]")) for i, entry in enumerate(entries)]
        self._known: dict[tuple[Stage, str, str | None], Applied] = {}

    def applying(self, stage: Stage, model: str, tenant: str | None) -> Applied:
        """Those for a call; empty in most cases."""
        key = (stage, model, tenant)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = self._known[key] = self._applying(stage, model, tenant)
        return found

    def _applying(self, stage: Stage, model: str, tenant: str | None) -> Applied:
        chosen = [
            (entry, rule)
            for entry, rule in self._entries
            if entry.stage in (stage, "both")
            and (not entry.models or model in entry.models)
            and (not entry.tenants or tenant in entry.tenants)
        ]
        return Applied(
            rules=tuple(rule for _, rule in chosen if rule is not None),
            sizes=tuple(
                SizeRule(name=entry.name, max_chars=entry.max_chars, blocks=entry.action == "block")
                for entry, _ in chosen
                if entry.max_chars is not None and stage == "prompt"
            ),
            hooks=tuple(
                HookRule(name=entry.name, hook=entry.hook, may_block=entry.action == "block")
                for entry, _ in chosen
                if entry.hook is not None
            ),
            needs_text=next((entry.name for entry, _ in chosen if _refuses_unread(entry)), None),
        )


def _refuses_unread(entry: FilterEntry) -> bool:
    return entry.action != "flag" and entry.on_unreadable == "closed"


_MAX_KNOWN = 4096


class FilterCompiler:
    """Compiles filters, and remembers the last ones: configurations change mostly elsewhere, and are checked before they are used."""

    def __init__(self) -> None:
        self._last: tuple[list[FilterEntry], FilterSet] = ([], FilterSet([]))

    def compiled(self, entries: list[FilterEntry]) -> FilterSet:
        """PatternError that names the field."""
        if entries != self._last[0]:
            self._last = (entries, FilterSet(entries))
        return self._last[1]

    def check(self, config: RouterConfig, source: str) -> None:
        """RouterConfigError if the filters of a configuration cannot be used."""
        try:
            self.compiled([] if config.settings is None else config.settings.filters)
        except PatternError as error:
            raise RouterConfigError(f"{source}: settings.{error}") from None


def _rule(entry: FilterEntry, place: str) -> Rule | None:
    """None: it looks for nothing in texts."""
    try:
        finders = _finders(entry, place)
    except PatternError as error:
        message = str(error)
        raise PatternError(message if message.startswith(place) else f"{place}.words: {message}") from None
    return Rule(entry.name, entry.action, tuple(finders), entry.replacement) if finders else None


def _finders(entry: FilterEntry, place: str) -> list[Finder]:
    if entry.words:
        return word_finders(entry.words)
    if entry.pii:
        return pii_finders(entry.pii)
    return [
        _pattern_finder(pattern, entry.max_match_bytes, f"{place}.patterns[{j}]")
        for j, pattern in enumerate(entry.patterns)
    ]


def _pattern_finder(pattern: str, max_bytes: int, place: str) -> Finder:
    try:
        finder = Finder(pattern, max_bytes=max_bytes)
    except PatternError as error:
        raise PatternError(f"{place}: RE2 refuses {pattern[:80]!r}: {error}") from None
    if finder.may_occur(b""):
        raise PatternError(
            f"{place}: {pattern[:80]!r} matches the empty text, so it would be found everywhere; use + for *"
        )
    return finder
