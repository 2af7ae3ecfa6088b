"""Writes requests to workers: the head, by the rules of `headers`, and the body, in one piece.

In C++ where that is there and every header is plain; else by the twin here, which also refuses what no head may hold.
"""

from typing import Any

from aiohttp.http_writer import _serialize_headers

from quire_contract import names
from quire_contract.trust import Trust
from quire_router import headers as header_rules
from quire_router.call import Call

_NOTHING: list[str] = []


class RequestHeads:
    """One for the process."""

    def __init__(self, trust: Trust | None, parts: Any = None) -> None:
        """`parts`: the extension module (`native`), if it is to be used."""
        self._trust = trust
        self._write = None
        if parts is not None:
            rules = (
                header_rules.NOT_TO_WORKER,
                header_rules.KEYS,
                names.INTERNAL_HEADER_PREFIX,
                header_rules.REQUEST_ID,
            )
            self._write = parts.RequestHeads(*rules).write

    def request(self, line: bytes, call: Call, body: bytes, now_s: float) -> bytes:
        """The bytes that send `body` for a call. `line`: the request line and Host, each with its end; `now_s` is of the clock of the
        call's deadline. ValueError if a header holds what would end it."""
        if self._write is not None:
            told = _NOTHING if self._trust is None else header_rules.told_in_trust(call, self._trust, now_s)
            request: bytes | None = self._write(line, call.headers, call.keep_key, call.request_id, told, body)
            if request is not None:
                return request
        passed = header_rules.of_call(call, self._trust, now_s)
        return line + _serialize_headers(f"Content-Length: {len(body)}", passed) + body
