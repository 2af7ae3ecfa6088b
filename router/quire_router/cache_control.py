"""What a client's Cache-Control header asks of the response cache (RFC 9111, 5.2.1). Pure."""

import msgspec
from multidict import MultiMapping

MAX_DIGITS = 9


class CacheWishes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The directives that are obeyed; others are ignored, as the RFC has it."""

    no_store: bool = False
    """Neither give a kept answer nor keep this one; nor share it."""
    no_cache: bool = False
    """Compute it anew; it may be kept."""
    only_if_cached: bool = False
    """A kept answer or none."""
    max_age_s: int | None = None
    """A kept answer must not be older."""


NO_WISHES = CacheWishes()


def cache_wishes(headers: MultiMapping[str]) -> CacheWishes:
    """Of one request's headers."""
    values = headers.getall("Cache-Control", ())
    if not values:
        return NO_WISHES
    directives: dict[str, str] = {}
    for directive in ",".join(values).split(","):
        name, _, value = directive.strip().partition("=")
        directives[name.strip().lower()] = value.strip().strip('"')
    return CacheWishes(
        no_store="no-store" in directives,
        no_cache="no-cache" in directives,
        only_if_cached="only-if-cached" in directives,
        max_age_s=_seconds(directives["max-age"]) if "max-age" in directives else None,
    )


def _seconds(text: str) -> int:
    """What is no number counts as 0: a kept answer is never what was asked for then."""
    if not (text.isascii() and text.isdecimal()):
        return 0
    return int(text) if len(text) <= MAX_DIGITS else 10**MAX_DIGITS
