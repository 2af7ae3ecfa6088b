"""GET over HTTP(S) with redirects under control: credentials stay with the host they are for, and https never becomes http.

This module must not know what is fetched.
"""

import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

import aiohttp
import yarl

from quire_worker.fetch.errors import FetchError, Reason, TransientError
from quire_worker.fetch.remote import Request

_MAX_REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 425, 429}
_UNAUTHORIZED = {401, 403, 407}
_GONE = {404, 410}
_MAX_RETRY_AFTER_DIGITS = 6
MAX_SIZE_DIGITS = 18
"""Of a file's size in bytes; Python refuses to read numbers of thousands of digits."""


def shown(url: str) -> str:
    """A URL for people: without user, query and fragment, which may be credentials."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


class Proxies:
    """Which proxy a URL goes through, by the usual variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` may hold HTTPS_PROXY, HTTP_PROXY and NO_PROXY, in either case."""
        folded = {name.lower(): text for name, text in environ.items() if text}
        self._by_scheme = {scheme: folded.get(f"{scheme}_proxy") for scheme in ("http", "https")}
        self._no = {"no": folded.get("no_proxy", "")}

    def proxy_for(self, url: str) -> str | None:
        """The proxy's URL; None to go straight."""
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        if urllib.request.proxy_bypass_environment(host, self._no):  # type: ignore[attr-defined]
            return None
        return self._by_scheme.get(parts.scheme)


class WebClient:
    """One session's GETs."""

    def __init__(self, session: aiohttp.ClientSession, proxies: Proxies) -> None:
        """`session` must not decompress: checksums and ranges are of the bytes as they lie there."""
        self._session = session
        self._proxies = proxies

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer after all redirects, whatever its status. Raises FetchError on a redirect that is not followed, aiohttp's errors."""
        url, first = request.url, _origin(request.url)
        for _ in range(_MAX_REDIRECTS):
            secrets = request.secret_headers if _origin(url) == first else {}
            headers = {"Accept-Encoding": "identity", **request.headers, **secrets}
            async with self._session.get(
                yarl.URL(url, encoded=True), headers=headers, allow_redirects=False, proxy=self._proxies.proxy_for(url)
            ) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    yield response
                    return
                url = _followed(url, response.headers["Location"])
        raise FetchError(
            Reason.UNREACHABLE, f"{shown(request.url)}: more than {_MAX_REDIRECTS} redirects; correct the address"
        )

    async def read(self, request: Request, max_bytes: int) -> bytes:
        """A whole small answer. Raises FetchError or TransientError by status, FetchError if it is longer."""
        async with self.open(request) as response:
            await check_status(response, shown(request.url))
            return await read_bounded(response, max_bytes, shown(request.url))


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int, what: str) -> bytes:
    """The body. Raises FetchError if it is longer than `max_bytes`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(Reason.INVALID_MODEL, f"{what}: the answer is longer than {max_bytes} bytes")
    return bytes(body)


async def check_status(response: aiohttp.ClientResponse, what: str, hint: str = "") -> None:
    """Raises what an answer without a body for us means; `hint` says what to do about credentials."""
    status = response.status
    if status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding not in {"", "identity"}:
            raise FetchError(
                Reason.INVALID_MODEL, f"{what}: comes as {encoding}, though not asked to; switch that off at the source"
            )
        return
    text = f"{what}: HTTP {status} {response.reason or ''}".rstrip()
    if status in _UNAUTHORIZED:
        fix = hint or "put a valid credential into the Secret that spec.model.secretRef names"
        raise FetchError(Reason.UNAUTHORIZED, f"{text}; {fix}")
    if status in _GONE:
        raise FetchError(Reason.NOT_FOUND, f"{text}; correct spec.model.uri or revision")
    if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise TransientError(text, _retry_after_s(response.headers.get("Retry-After", "")))
    raise FetchError(Reason.UNREACHABLE, f"{text}; the source does not understand the request")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _followed(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise FetchError(Reason.UNREACHABLE, f"{shown(url)}: redirects to something that is no web address")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise FetchError(
            Reason.UNREACHABLE, f"{shown(url)}: redirects from https to http, which anybody on the way could change"
        )
    return target


def _retry_after_s(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_RETRY_AFTER_DIGITS else None
