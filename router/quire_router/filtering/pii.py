"""Personal data and secrets by their shape, each kind with a check that rules out what only looks like it.

The kinds are those of `router_settings.FilterEntry.pii`. What none can tell apart (a version 10.1.2.3 from an address) is found too often
rather than missed; docs/content-filters.md lists it.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable

from quire_router.filtering.finder import Accept, Finder, compiled

_NO_WORD = r"(?:\A|[^\pL\pN_{also}])"
_END = r"(?:[^\pL\pN_{also}]|\z)"
_END_OR_STOP = r"(?:[^\pL\pN_.{also}]|\.[^\pN]|\.?\z)"
"""A full stop may follow, but no further number after it."""
_FILE_ENDINGS = frozenset(b"png jpg jpeg gif svg webp avif css js ts mjs html json md py map woff ttf".split())
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE", "18": "DK FI FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK", "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL", "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST", "26": "IS TR", "27": "BI DJ FR GR IT MC MR SM", "28": "AL AZ CY DO GT HU LB NI PL", "29": "BR EG PS QA UA",
        "30": "JO KW MU YE", "31": "MT SC", "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
"""The IBAN registry's; the countries that are missing are found by the checksum alone."""


def pii_finders(kinds: Iterable[str]) -> list[Finder]:
    """Finders for these kinds."""
    return [finder for kind in dict.fromkeys(kinds) for finder in _KINDS[kind]()]


def _around(
    core: str,
    accept: Accept,
    *,
    before: str = "",
    after: str | None = None,
    first: bytes = rb"[0-9+(]",
    max_bytes: int = 64,
) -> Finder:
    """`before`, `after`: what else than a letter or a digit must not stand beside it; `first`: what it begins with."""
    end = after or (_END_OR_STOP if "." in before else _END).format(also=before.replace(".", ""))
    pattern = f"{_NO_WORD.format(also=before)}({core}){end}"
    return Finder(pattern, max_bytes=max_bytes, core=1, has_lead=True, accept=accept, first=re.compile(first))


def _emails() -> list[Finder]:
    pattern = r"(?:\A|[^\pL\pN_])([\pL\pN_][\pL\pN._%+'-]*@(?:[\pL\pN-]+\.)+\pL{2,24})"
    begun = compiled(r"[\pL\pN_][\pL\pN._%+'-]*(?:@[\pL\pN.-]*)?\z")

    def hold(end: bytes) -> int:
        found = begun.search(end)
        return len(end) if found is None else int(found.start())

    return [Finder(pattern, max_bytes=320, core=1, has_lead=True, accept=_email, hold=hold)]


def _email(text: bytes) -> int:
    local, _, domain = text.rpartition(b"@")
    if domain.rpartition(b".")[2].lower() in _FILE_ENDINGS or local == b"git" or b".." in local:
        return 0
    if any(label.startswith(b"-") or label.endswith(b"-") for label in domain.split(b".")):
        return 0
    return len(text)


def _phones() -> list[Finder]:
    return [
        _around(r"\+[1-9][0-9]{0,2}(?:[ .\x{a0}/-]?(?:\(0?[0-9]{0,4}\)[ ]?)?[0-9]{1,12}){1,6}", _international, before="+."),
        _around(r"(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}", len, before="+.-"),
        _around(r"\(?0[1-9][0-9]{1,4}\)?(?:[ /][0-9]{2,8}){1,4}", _national, before="+.,/:-"),
    ]  # fmt: skip


def _digits(text: bytes) -> bytes:
    return bytes(byte for byte in text if 0x30 <= byte <= 0x39)


def _international(text: bytes) -> int:
    return len(text) if 8 <= len(_digits(text)) <= 15 else 0


def _national(text: bytes) -> int:
    return len(text) if 9 <= len(_digits(text)) <= 12 else 0


def _credit_cards() -> list[Finder]:
    shapes = (r"[2-6][0-9]{12,18}", r"[2-6][0-9]{3}(?:[ -][0-9]{4}){3}", r"3[47][0-9]{2}[ -][0-9]{6}[ -][0-9]{5}")
    return [_around(shape, _card, before=".") for shape in shapes]


def _card(text: bytes) -> int:
    digits = _digits(text)
    return len(text) if _is_card_length(digits) and len(set(digits)) > 1 and _luhn(digits) else 0


def _is_card_length(digits: bytes) -> bool:
    """Whether an issuer has numbers that begin so and are so long."""
    first, two, four, length = digits[:1], int(digits[:2]), int(digits[:4]), len(digits)
    if first == b"4":
        return length in (13, 16, 19)
    if two in (34, 37):
        return length == 15
    if two in (36, 38) or 300 <= four // 10 <= 305:
        return 14 <= length <= 19
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    return 16 <= length <= 19 and (two in (35, 60, 62, 64, 65, 81) or two in (50, 56, 57, 58, 63, 67))


def _luhn(digits: bytes) -> bool:
    total = 0
    for place, byte in enumerate(reversed(digits)):
        value = (byte - 0x30) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _ibans() -> list[Finder]:
    return [_around(r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?", _iban, first=rb"[A-Z]")]


def _iban(text: bytes) -> int:
    """As long as the country's numbers are: what follows may be another word in capitals."""
    compact = text.replace(b" ", b"")
    length = _IBAN_LENGTHS.get(compact[:2].decode(), len(compact))
    number = compact[:length]
    if len(number) != length or not 15 <= length <= 34:
        return 0
    turned = "".join(str(int(chr(byte), 36)) for byte in number[4:] + number[:4])
    if int(turned) % 97 != 1:
        return 0
    return _bytes_of(text, length)


def _bytes_of(text: bytes, num_signs: int) -> int:
    """Length of the first so many of its bytes that are no spaces, if the number ends there; otherwise 0."""
    for place, byte in enumerate(text):
        num_signs -= byte != 0x20
        if num_signs == 0:
            return place + 1 if text[place + 1 : place + 2] in (b"", b" ") else 0
    return 0


def _ip_addresses() -> list[Finder]:
    byte = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    after = r"(?:[^\pL\pN_.-]|\.[^\pN]|\.?\z)"
    return [
        _around(rf"{byte}(?:\.{byte}){{3}}", _ipv4, before=".-", after=after),
        _around(r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,8}", _ipv6, before=":.", first=rb"[0-9A-Fa-f:]"),
    ]


def _ipv4(text: bytes) -> int:
    address = ipaddress.IPv4Address(text.decode())
    tells_nothing = address.is_loopback or address.is_unspecified or address.is_multicast or text.startswith(b"255.")
    return 0 if tells_nothing else len(text)


def _ipv6(text: bytes) -> int:
    try:
        address = ipaddress.IPv6Address(text.decode())
    except ValueError:
        return 0
    num_groups = sum(1 for group in text.split(b":") if group)
    return len(text) if num_groups >= 3 and not address.is_link_local else 0


def _us_ssns() -> list[Finder]:
    return [_around(r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}", _ssn, before=".-")]


def _ssn(text: bytes) -> int:
    area, group, serial = text.split(b"-")
    return 0 if area in (b"000", b"666") or group == b"00" or serial == b"0000" else len(text)


def _api_keys() -> list[Finder]:
    shapes = (
        r"sk-[A-Za-z0-9_-]{20,}",
        r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",
        r"(?:AKIA|ASIA)[A-Z0-9]{16}",
        r"gh[pousr]_[A-Za-z0-9]{36,}",
        r"github_pat_[A-Za-z0-9_]{22,}",
        r"glpat-[A-Za-z0-9_-]{20,}",
        r"xox[abeprs]-[A-Za-z0-9-]{10,}",
        r"AIza[A-Za-z0-9_-]{35}",
        r"hf_[A-Za-z0-9]{30,}",
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    )
    block = r"-----BEGIN (?:[A-Z]{2,9} ){0,2}PRIVATE KEY-----[\sA-Za-z0-9+/=]*(?:-----END (?:[A-Z]{2,9} ){0,2}PRIVATE KEY-----)?"
    return [
        _around("|".join(shapes), _key, first=rb"[sprAgxhe]", max_bytes=2048),
        Finder(block, max_bytes=4096, first=re.compile(rb"-")),
    ]


def _key(text: bytes) -> int:
    """Words with hyphens have the shape of some keys: a key has a digit."""
    return len(text) if any(0x30 <= byte <= 0x39 for byte in text) or text.startswith(b"eyJ") else 0


_KINDS: dict[str, Callable[[], list[Finder]]] = {
    "email": _emails,
    "phone": _phones,
    "credit_card": _credit_cards,
    "iban": _ibans,
    "ip_address": _ip_addresses,
    "us_ssn": _us_ssns,
    "api_key": _api_keys,
}
