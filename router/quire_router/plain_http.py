"""HTTP without its oddities, in C++: reads requests that are wholly there and wholly plain, and writes whole answers that are.

Whatever it does not take is aiohttp's to read, to refuse or to write, so no rule about malformed messages is made here. One for a server;
without a compiler there is none, and aiohttp does it all.
"""

from collections.abc import Collection, Mapping
from typing import Any

from aiohttp import hdrs
from multidict import istr

from quire_contract import names
from quire_router.first_lines import first_lines
from quire_router.headers import HEADER_ROUTE, goes_to_client
from quire_router.native.library import native
from quire_router.turn import Turn

_SPELLED: Mapping[bytes, istr] = {name.lower().encode(): name for name in vars(hdrs).values() if isinstance(name, istr)}
"""Headers that aiohttp knows, as it spells them."""

HOLD_S = 0.01
"""For the rest of a plain request. Many clients write head and body apart, so that one comes shortly after the other."""
MAX_HELD_BYTES = 64 * 1024
"""Of that rest."""


class PlainHttp:
    """Of one server."""

    def __init__(self, module: Any, paths: Collection[str], hold_s: float) -> None:
        """`module` as of `native()`. `paths` are those whose POSTs are read."""
        self.hold_s = hold_s
        """How long the beginning of a plain request is kept from aiohttp, for the rest to come."""
        self.turn: type[Turn[Any]] = module.Turn
        """What a connection's task waits at."""
        self.read = module.PlainReader(tuple(paths), name_of).read
        """bytes -> path, headers and body of the one request that they are; how many bytes of its body are still to come, if all before it
        is plain; None: anything else."""
        own = (names.HEADER_REQUEST_ID, names.HEADER_WORKER, HEADER_ROUTE)
        self.write = module.AnswerWriter(goes_to_client, first_lines, own).write
        """Status, a worker's headers, the values of our own (the request's id, the worker, the route), the body, and what layers added ->
        the whole answer, for a connection that goes on; the status allows a body. None: it is not plain."""


def plain_http(paths: Collection[str], *, hold_s: float = HOLD_S) -> PlainHttp | None:
    """None: this process has no extension."""
    module = native()
    return None if module is None else PlainHttp(module, paths, hold_s)


def name_of(raw: bytes) -> istr:
    """A header's name as aiohttp's parser gives it."""
    known = _SPELLED.get(raw.lower())
    return istr(raw.decode("ascii")) if known is None else known
