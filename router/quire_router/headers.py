"""Which headers pass the router, in both directions. Knows no bodies."""

import enum
import functools
import re

from aiohttp import hdrs
from multidict import CIMultiDict, MultiMapping, istr

from quire_contract import names
from quire_contract.resume import HEADER_REPLAY
from quire_contract.trust import Trust
from quire_router.call import Call

HEADER_ROUTE = "x-quire-route"

# Of one connection only (RFC 9110, 7.6.1), or written anew on each side.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
NOT_TO_WORKER = _HOP_BY_HOP | {
    "host",
    "content-length",
    "expect",  # answered by the server here
    "accept-encoding",  # a compressed stream could not be cut at its events
    "content-encoding",  # the server here has decoded the body
    "cookie",
    names.HEADER_REQUEST_ID,
}
KEYS = frozenset({"authorization", names.HEADER_API_KEY})
_NOT_TO_CLIENT = _HOP_BY_HOP | {"content-length", "date", "server", "set-cookie", names.HEADER_REQUEST_ID}
_OPTIONS_OF_CONNECTION = hdrs.CONNECTION
_MAX_KNOWN_NAMES = 256
"""Spellings of headers' names whose way is remembered, in each direction."""
REQUEST_ID, _TOKEN, _REPLAY = istr(names.HEADER_REQUEST_ID), istr(names.HEADER_TOKEN), istr(HEADER_REPLAY)
_WORKER, _ROUTE = istr(names.HEADER_WORKER), istr(HEADER_ROUTE)
_NOT_IN_VALUES = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""aiohttp reads such values from a worker and writes them to nobody: they would end the whole answer."""


class _Way(enum.Enum):
    """What becomes of a header."""

    PASSES = enum.auto()
    IS_A_KEY = enum.auto()
    ENDS = enum.auto()


@functools.lru_cache(_MAX_KNOWN_NAMES)
def _way_to_worker(name: str) -> _Way:
    lower = name.lower()
    if lower in NOT_TO_WORKER or lower.startswith(names.INTERNAL_HEADER_PREFIX):
        return _Way.ENDS
    return _Way.IS_A_KEY if lower in KEYS else _Way.PASSES


@functools.lru_cache(_MAX_KNOWN_NAMES)
def goes_to_client(name: str) -> bool:
    """Whether a worker's header of that name passes."""
    lower = name.lower()
    return lower == names.HEADER_REASON or not (
        lower in _NOT_TO_CLIENT or lower.startswith(names.INTERNAL_HEADER_PREFIX)
    )


def to_worker(headers: MultiMapping[str], *, keep_key: bool) -> CIMultiDict[str]:
    """Of a client's headers, those that a worker gets: none of its connection and no internal one.

    `keep_key`: the client's key, in Authorization or x-api-key, is meant for the worker, not for us."""
    passed: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        way = _way_to_worker(name)
        if way is _Way.PASSES or (way is _Way.IS_A_KEY and keep_key):
            passed.add(name, value)
    if _OPTIONS_OF_CONNECTION in headers:
        _drop_named(passed, headers)
    return passed


def told_in_trust(call: Call, trust: Trust, now_s: float) -> list[str]:
    """What we tell a worker that trusts us, beside the request's id: a name, its value, a name, ... None of these names passes from a
    client. It is asked for token replay, and told what else it must know of the call.

    `now_s` is of the clock of the call's deadline."""
    own: list[str] = [_TOKEN, trust.token, _REPLAY, "1"]
    if call.deadline_s is not None:
        own += (names.HEADER_DEADLINE, f"{max(0.0, call.deadline_s - now_s):.3f}")
    if call.priority:
        own += (names.HEADER_PRIORITY, str(-call.priority))  # workers serve the lower number first
    if call.tenant is not None:
        own += (names.HEADER_TENANT, call.tenant.entry.id)
    if call.cache_salt is not None:
        own += (names.HEADER_CACHE_SALT, call.cache_salt)
    return own


def of_call(call: Call, trust: Trust | None, now_s: float) -> CIMultiDict[str]:
    """Headers of the request to a worker."""
    passed = to_worker(call.headers, keep_key=call.keep_key)
    passed[REQUEST_ID] = call.request_id
    own = [] if trust is None else told_in_trust(call, trust, now_s)
    for name, value in zip(own[::2], own[1::2], strict=True):
        passed[name] = value
    return passed


def to_client(headers: MultiMapping[str], request_id: str, endpoint_id: str, route: str) -> CIMultiDict[str]:
    """Headers of the answer: the worker's without those of its connection and without internal ones but our own."""
    passed: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if goes_to_client(name) and (value.isprintable() or not _NOT_IN_VALUES.search(value)):
            passed.add(name, value)
    if _OPTIONS_OF_CONNECTION in headers:
        _drop_named(passed, headers, but=names.HEADER_REASON)
    passed[REQUEST_ID] = request_id
    passed[_WORKER] = endpoint_id
    passed[_ROUTE] = route
    return passed


def _drop_named(passed: CIMultiDict[str], headers: MultiMapping[str], but: str = "") -> None:
    """Drop what the sender declares to be of its connection only, in one Connection header or in several; keep `but`."""
    for value in headers.getall(_OPTIONS_OF_CONNECTION, ()):
        for option in value.split(","):
            name = option.strip()
            if name.lower() != but:
                passed.popall(name, None)
