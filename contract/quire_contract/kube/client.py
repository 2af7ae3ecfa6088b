"""Requests to the API server: one method per verb, JSON objects as dicts, one error type.

Nothing is retried here: whoever calls knows whether trying again makes sense. This module must not know what the objects mean.
"""

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from quire_contract.kube.access import KubeAccess, KubeAccessError
from quire_contract.kube.resources import ResourceKind

KubeObject = dict[str, Any]
KubeObjects = list[KubeObject]
Observer = Callable[[str, ResourceKind | None, int], None]

_REQUEST_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0
_WATCH_GRACE_S = 5.0
_KEEPALIVE = {"TCP_KEEPIDLE": 6, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
"""A watch may be silent for as long as it lasts: dead connections are found by the kernel, in 15 s."""
_TOKEN_AGE_S = 60.0
_MAX_CONNECTIONS = 64
_MAX_LINE_BYTES = 32 * 2**20
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"
_JSON = "application/json"
_MAX_WAIT_DIGITS = 6


class KubeError(Exception):
    """The API server refused a request, or did not answer (status 0)."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        """`reason` is one CamelCase word such as NotFound; `message` is for people."""
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class KubeClient:
    """One session with the API server. An async context manager."""

    def __init__(
        self,
        access: KubeAccess,
        *,
        user_agent: str,
        observe: Observer | None = None,
        before: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`observe(method, kind, status)` is told of every answer (status 0: none came), of a watch when it begins or breaks.

        `before(method)` is called before each request, which what it raises prevents.
        """
        self._access = access
        self._user_agent = user_agent
        self._observe = observe
        self._before = before
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None
        self._token: str | None = None
        self._token_read_s = float("-inf")

    @property
    def access(self) -> KubeAccess:
        """Where it is connected to."""
        return self._access

    async def __aenter__(self) -> "KubeClient":
        """Open the session; no request is sent. KubeAccessError if the credentials cannot be used."""
        signs_in = self._access.sign_in is not None
        context = await asyncio.to_thread(self._access.ssl_context) if signs_in else self._access.ssl_context()
        self._tls = context
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_MAX_CONNECTIONS, ssl=True if context is None else context, socket_factory=_socket
            ),
            timeout=aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            headers={"User-Agent": self._user_agent, "Accept": _JSON},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections; running watches end with an error."""
        if self._session is not None:
            await self._session.close()

    async def get(
        self, kind: ResourceKind, namespace: str | None, name: str, subresource: str | None = None
    ) -> KubeObject:
        """One object. KubeError 404 if there is none."""
        return await self._request("GET", kind.path(namespace, name, subresource), kind)

    async def list(
        self, kind: ResourceKind, namespace: str | None, label_selector: str = "", limit: int = 500
    ) -> tuple[KubeObjects, str]:
        """All objects, read in pages of `limit`, and the resource version to watch from. KubeError 410: begin again."""
        items: KubeObjects = []
        version = ""
        async for page, version in self.list_pages(kind, namespace, label_selector, limit):  # noqa: B007
            items += page
        return items, version

    async def list_pages(
        self, kind: ResourceKind, namespace: str | None, label_selector: str = "", limit: int = 500
    ) -> AsyncGenerator[tuple[KubeObjects, str], None]:
        """Like `list`, a page at a time."""
        params = {"limit": str(limit)}
        if label_selector:
            params["labelSelector"] = label_selector
        while True:
            answer = await self._request("GET", kind.path(namespace), kind, params=params)
            items = answer.get("items") or []
            for item in items:  # lists leave them out
                item["apiVersion"], item["kind"] = kind.api_version, kind.kind
            yield items, answer["metadata"].get("resourceVersion", "")
            following = answer["metadata"].get("continue")
            if not following:
                return
            params["continue"] = following

    async def create(
        self, kind: ResourceKind, namespace: str | None, body: Mapping[str, Any], *, field_manager: str | None = None
    ) -> KubeObject:
        """Make an object. KubeError 409 AlreadyExists if there is one."""
        params = {"fieldManager": field_manager} if field_manager else {}
        return await self._request("POST", kind.path(namespace), kind, params=params, body=body)

    async def replace(
        self,
        kind: ResourceKind,
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
        field_manager: str | None = None,
    ) -> KubeObject:
        """Write the whole object. KubeError 409 Conflict if `body`'s resourceVersion is not the present one."""
        params = {"fieldManager": field_manager} if field_manager else {}
        return await self._request("PUT", kind.path(namespace, name, subresource), kind, params=params, body=body)

    async def apply(
        self,
        kind: ResourceKind,
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> KubeObject:
        """Server-side apply: `body` is all that `field_manager` wants; it is made if missing. The object as it is then."""
        params = {"fieldManager": field_manager, "force": "true" if force else "false"}
        path = kind.path(namespace, name, subresource)
        return await self._request("PATCH", path, kind, params=params, body=body, content_type=_APPLY_PATCH)

    async def merge_patch(
        self,
        kind: ResourceKind,
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
        field_manager: str | None = None,
    ) -> KubeObject:
        """JSON merge patch. KubeError 404 if there is no such object."""
        params = {"fieldManager": field_manager} if field_manager else {}
        path = kind.path(namespace, name, subresource)
        return await self._request("PATCH", path, kind, params=params, body=body, content_type=_MERGE_PATCH)

    async def delete(
        self,
        kind: ResourceKind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
    ) -> None:
        """Delete, only if it still is the object with `uid` and `resource_version`. KubeError 404 or 409 otherwise."""
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        wanted = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {key: value for key, value in wanted.items() if value is not None}
        if preconditions:
            body["preconditions"] = preconditions
        await self._request("DELETE", kind.path(namespace, name), kind, body=body)

    async def serves(self, kind: ResourceKind) -> bool:
        """Whether the API server has this kind in this version."""
        try:
            answer = await self._request("GET", kind.group_path, None)
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return any(resource.get("name") == kind.plural for resource in answer.get("resources") or [])

    async def server_minor(self) -> int:
        """The server's minor version: 31 of 1.31; 0 if it does not say."""
        minor = str((await self._request("GET", "/version", None)).get("minor") or "")
        digits = "".join(itertools.takewhile(str.isdecimal, minor))  # managed clusters write 31+
        return int(digits[:_MAX_WAIT_DIGITS] or 0)

    async def watch(
        self,
        kind: ResourceKind,
        namespace: str | None,
        resource_version: str,
        label_selector: str = "",
        timeout_s: int = 300,
    ) -> AsyncGenerator[tuple[str, KubeObject], None]:
        """Changes since `resource_version`: ADDED, MODIFIED, DELETED or BOOKMARK (a newer version, nothing else in the object).

        Ends after `timeout_s`; go on from the last version seen. KubeError 410: the version is too old, list again.
        """
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_s),
        }
        if label_selector:
            params["labelSelector"] = label_selector
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=timeout_s + _WATCH_GRACE_S
        )
        headers = await self._headers()
        try:
            async with self._opened.get(
                self._url(kind.path(namespace)), params=params, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                self._tell("WATCH", kind, answer.status)
                if answer.status != 200:
                    raise self._error_of(answer, await answer.read())
                async for line in _lines(answer.content):
                    yield _watch_event(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tell("WATCH", kind, 0)
            raise _no_answer(error) from error

    @property
    def _opened(self) -> aiohttp.ClientSession:
        assert self._session is not None, "enter the client first"
        return self._session

    async def _request(
        self,
        method: str,
        path: str,
        kind: ResourceKind | None,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
    ) -> KubeObject:
        if self._before is not None:
            self._before(method)
        data = None if body is None else msgspec.json.encode(body)
        headers = {**await self._headers(), "Content-Type": content_type}
        try:
            async with self._opened.request(
                method,
                self._url(path),
                params=params,
                data=data,
                headers=headers,
                allow_redirects=False,  # nobody else gets our credentials
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tell(method, kind, 0)
            raise _no_answer(error) from error
        self._tell(method, kind, answer.status)
        if answer.status >= 300:
            raise self._error_of(answer, content)
        return _decoded(content)

    def _url(self, path: str) -> str:
        return self._access.server + path

    async def _headers(self) -> dict[str, str]:
        now_s = self._clock()
        try:
            if self._access.sign_in is not None:
                self._token = await asyncio.to_thread(self._signed_in)
            elif now_s - self._token_read_s >= _TOKEN_AGE_S:
                self._token, self._token_read_s = self._access.bearer(), now_s
        except (KubeAccessError, ssl.SSLError) as error:
            raise KubeError(0, "NoCredential", str(error)) from None
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _signed_in(self) -> str | None:
        token = self._access.bearer()
        if self._tls is not None:
            self._access.load_client_certificate(self._tls)
        return token

    def _tell(self, method: str, kind: ResourceKind | None, status: int) -> None:
        if self._observe is not None:
            self._observe(method, kind, status)

    def _error_of(self, answer: aiohttp.ClientResponse, content: bytes) -> KubeError:
        if answer.status == 401:
            self._token_read_s = float("-inf")  # it may have been replaced
            if self._access.sign_in is not None:
                self._access.sign_in.refused()
        try:
            status = _decoded(content)
        except KubeError:
            status = {}
        if status.get("kind") != "Status":
            status = {"message": content[:500].decode("utf-8", "replace")}
        details = status.get("details") or {}
        wait = answer.headers.get("Retry-After") or str(details.get("retryAfterSeconds") or "")
        return KubeError(
            answer.status,
            status.get("reason") or (answer.reason or "Unknown").replace(" ", ""),
            status.get("message") or "",
            float(wait) if wait.isascii() and wait.isdigit() and len(wait) <= _MAX_WAIT_DIGITS else None,
        )


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        if hasattr(socket, option):  # names differ between systems
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _decoded(content: bytes) -> KubeObject:
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KubeError(0, "BadAnswer", f"the API server's answer is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise KubeError(0, "BadAnswer", "the API server's answer is not a JSON object")
    return value


def _watch_event(line: bytes) -> tuple[str, KubeObject]:
    event = _decoded(line)
    body: KubeObject = event.get("object") or {}
    if not isinstance(body, dict) or not isinstance(body.get("metadata") or {}, dict):
        raise KubeError(0, "BadAnswer", "a watch event holds no object")
    if event.get("type") == "ERROR":
        code = body.get("code")
        raise KubeError(
            code if isinstance(code, int) else 0, body.get("reason") or "Unknown", body.get("message") or ""
        )
    return str(event.get("type")), body


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = bytearray()
    async for chunk in stream.iter_any():
        *complete, tail = chunk.split(b"\n")
        for part in complete:
            rest += part
            if rest:
                yield bytes(rest)
            rest.clear()
        rest += tail
        if len(rest) > _MAX_LINE_BYTES:
            raise KubeError(0, "BadAnswer", "a watch event is larger than any object can be")


def _no_answer(error: BaseException) -> KubeError:
    if isinstance(error, asyncio.TimeoutError):
        return KubeError(0, "Timeout", "the API server did not answer in time")
    return KubeError(0, "Unreachable", f"the API server cannot be reached: {error}")
