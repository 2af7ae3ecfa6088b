"""An answer on its way from a worker to a client, and the layers that it passes.

    Delivery <- layer <- layer <- ... <- Proxy <- worker

A layer takes the call inwards and the answer outwards: it may refuse the call (ApiError), change it, answer it itself, or put a generator
around the answer's parts. One that has nothing to do with a call returns what the inner source gave, so it costs nothing for each part.
Whoever takes an answer closes it, however that ends; closing one closes those that it was made of (`Answer.through`).
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from typing import Protocol

from multidict import CIMultiDict

from quire_contract import names
from quire_contract.openai.errors import ApiError
from quire_router.call import Call, Outcome
from quire_router.passed_headers import PassedHeaders
from quire_router.relay import Attach

Release = Callable[[], Awaitable[None]]


class BrokenStreamError(Exception):
    """Raised by an answer's parts: it ended or stalled for good after its first part was given, and nobody can go on with it."""


class LateRefusalError(Exception):
    """Raised by the parts of an answer of which nothing but comments was given, to who said that it may try another model."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class Answer:
    """What is sent to the client. Either whole, or in parts."""

    __slots__ = ("_release", "attach", "body", "is_events", "is_provisional", "parts", "status", "untouched_headers")

    untouched_headers: CIMultiDict[str] | PassedHeaders
    """As they were given, where nobody has looked at them yet: for who only sends them."""

    def __init__(
        self,
        *,
        status: int,
        headers: CIMultiDict[str] | PassedHeaders,
        body: bytes | None = None,
        parts: AsyncGenerator[bytes, None] | None = None,
        is_events: bool = False,
        release: Release | None = None,
        attach: Attach | None = None,
    ) -> None:
        """`is_events`: each part is one or several whole server-sent events. Otherwise parts are cut anywhere.

        `attach`: how to get parts without taking each from `parts` (see `relay`); only for who takes `parts` as well, and changes none.

        `release` is awaited when the answer is closed, also if no part was ever taken: a generator that never began cannot clean up."""
        assert (body is None) != (parts is None), "an answer is whole or comes in parts"
        self.status = status
        self.untouched_headers = headers
        self.body = body
        self.parts = parts
        self.is_events = is_events
        self._release = release
        self.attach = attach
        self.is_provisional = False
        """Its parts may raise LateRefusalError: the stream began before its worker was known."""

    @property
    def headers(self) -> CIMultiDict[str]:
        """Its own, to be changed as well."""
        headers = self.untouched_headers
        if isinstance(headers, PassedHeaders):
            headers = self.untouched_headers = headers.made()
        return headers

    @property
    def added_headers(self) -> MutableMapping[str, str]:
        """Where a header is set that takes the place of any other one of its name. Not for reading."""
        headers = self.untouched_headers
        return headers.added if isinstance(headers, PassedHeaders) else headers

    def reason(self) -> str | None:
        """Why a worker or the router refused; None: it does not say."""
        headers = self.untouched_headers
        if isinstance(headers, PassedHeaders) and names.HEADER_REASON not in headers.theirs:
            return headers.added.get(names.HEADER_REASON)
        return self.headers.get(names.HEADER_REASON)

    def through(self, parts: AsyncGenerator[bytes, None]) -> "Answer":
        """This answer with other parts, made of its own. It is closed with the new one."""
        return Answer(
            status=self.status, headers=self.headers, parts=parts, is_events=self.is_events, release=self.close
        )

    async def close(self) -> None:
        """Nobody reads on: what computes it may stop. Further calls do nothing."""
        release, self._release = self._release, None
        try:
            if self.parts is not None:
                await self.parts.aclose()
        finally:
            if release is not None:
                await release()


Source = Callable[[Call, Outcome], Awaitable[Answer]]
"""Gives the answer to a call. ApiError if there is none."""


class Layer(Protocol):
    """One concern of every call."""

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The answer, with the help of `inner`. ApiError refuses the call. A layer that has nothing to do with a call gives `inner`'s
        awaitable back: then it is no part of what is resumed each time the call goes on."""


def layered(layers: Sequence[Layer], source: Source) -> Source:
    """`source` behind `layers`, the first of which sees a call first and its answer last."""
    for layer in reversed(layers):
        source = _around(layer, source)
    return source


def _around(layer: Layer, inner: Source) -> Source:
    def answer(call: Call, outcome: Outcome) -> Awaitable[Answer]:
        return layer.answer(call, outcome, inner)

    return answer
