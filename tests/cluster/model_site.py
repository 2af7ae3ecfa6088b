"""A web server with a model's files that pods can reach: ranges, strong ETags, a token if wanted, and a bounded rate.

It listens on the node's bridge, never on the machine's other addresses. Must not know what a test expects.
"""

import hashlib
import re
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 * 1024
JOIN_TIMEOUT_S = 10.0
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request that came."""

    path: str
    status: int
    first_byte: int
    """Where the answer's body begins in the file."""
    num_bytes: int
    """Length of the answer's body."""


class ModelSite:
    """`with ModelSite(address, {"": folder}) as site:` serves `folder` below site.url; another key is a path, such as "/private"."""

    def __init__(self, address: str, folders: dict[str, Path], port: int = 0) -> None:
        """A free port unless one is given."""
        self.asked: list[Asked] = []
        self.folders = folders
        """May be changed at any time, as may the following."""
        self.token: str | None = None
        """Asked of every request, as a bearer token."""
        self.bytes_per_s: int | None = None
        """Of all answers together; None: as fast as it goes."""
        self._pace, self._due, self._closing = threading.Lock(), 0.0, threading.Event()
        self._server = _Server((address, port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="model-site")
        self.url = f"http://{address}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(JOIN_TIMEOUT_S)

    def resumed(self, name: str) -> list[Asked]:
        """Requests for the file `name` that were answered from its middle to its end."""
        return [asked for asked in self.asked if asked.path.endswith(f"/{name}") and asked.first_byte > 0]

    def find(self, path: str) -> Path | None:
        """The file that a path names; None where there is none. Only files that lie directly in a folder are served."""
        prefix, _, name = path.rpartition("/")
        folder = self.folders.get(prefix)
        file = folder / name if folder and re.fullmatch(r"[\w-][\w.-]*", name) else None
        return file if file and file.is_file() else None

    def wait_for_turn(self, num_bytes: int) -> bool:
        """Returns when `num_bytes` more may be sent; False if the server closes."""
        rate = self.bytes_per_s
        if rate is None:
            return not self._closing.is_set()
        with self._pace:
            self._due = max(self._due, time.monotonic()) + num_bytes / rate
            due = self._due
        return not self._closing.wait(max(0.0, due - time.monotonic()))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _answer(site, self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it)
                """Says nothing: tests read `asked`."""

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing about clients that went away: fetchers look at the first byte of a file and hang up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # socketserver's own type is private


def _answer(site: ModelSite, request: BaseHTTPRequestHandler) -> None:
    file = site.find(request.path)
    if site.token is not None and request.headers.get("Authorization") != f"Bearer {site.token}":
        _refuse(site, request, HTTPStatus.UNAUTHORIZED)
    elif file is None:
        _refuse(site, request, HTTPStatus.NOT_FOUND)
    else:
        _send(site, request, file.read_bytes())


def _refuse(site: ModelSite, request: BaseHTTPRequestHandler, status: HTTPStatus) -> None:
    site.asked.append(Asked(path=request.path, status=status, first_byte=0, num_bytes=0))
    request.send_response(status)
    request.send_header("Content-Length", "0")
    request.end_headers()


def _send(site: ModelSite, request: BaseHTTPRequestHandler, content: bytes) -> None:
    """Raises nothing where the client goes away: being cut is what tests do to it."""
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    start, end, status = 0, len(content), HTTPStatus.OK
    wanted = RANGE.fullmatch(request.headers.get("Range", ""))
    if wanted and int(wanted[1]) < len(content) and request.headers.get("If-Range", etag) == etag:
        start, status = int(wanted[1]), HTTPStatus.PARTIAL_CONTENT
        end = min(int(wanted[2]) + 1, end) if wanted[2] else end
    site.asked.append(Asked(path=request.path, status=status, first_byte=start, num_bytes=end - start))
    request.send_response(status)
    request.send_header("ETag", etag)
    request.send_header("Content-Length", str(end - start))
    if status == HTTPStatus.PARTIAL_CONTENT:
        request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
    request.end_headers()
    for at in range(start, end, CHUNK_BYTES):
        chunk = content[at : min(at + CHUNK_BYTES, end)]
        if not site.wait_for_turn(len(chunk)):
            request.close_connection = True
            return
        try:
            request.wfile.write(chunk)
        except OSError:
            request.close_connection = True
            return
