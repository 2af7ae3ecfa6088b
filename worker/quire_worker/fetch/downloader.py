"""One remote file onto the disk: continued where it was cut, checked against what the source vouches for.

If it differs, it is fetched anew once. This module must not know which files a model has.
"""

import asyncio
import shutil
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import aiohttp

from quire_worker.fetch.errors import FetchError, Reason, TransientError
from quire_worker.fetch.part_file import PartFile, disk_error
from quire_worker.fetch.patience import Patience
from quire_worker.fetch.progress import Progress
from quire_worker.fetch.remote import Checksum, RemoteFile, Request, Source
from quire_worker.fetch.store import FileRecord
from quire_worker.fetch.web_client import MAX_SIZE_DIGITS, WebClient, check_status, shown

_WRITE_BYTES = 1024 * 1024
_RESERVE_BYTES = 64 * 1024 * 1024
"""Left free on the disk by a file whose size nobody said: others write there too."""
_ENCRYPTION_HEADER = "x-amz-server-side-encryption"
_CUSTOMER_KEY_HEADER = "x-amz-server-side-encryption-customer-algorithm"


class Downloader:
    """Downloads files of one source."""

    def __init__(
        self, web: WebClient, source: Source, patience: Patience, progress: Progress, max_bytes: int | None = None
    ) -> None:
        """`max_bytes` is for the whole model; None: what the disk has."""
        self._web = web
        self._max_bytes = max_bytes
        self._source = source
        self._patience = patience
        self._progress = progress

    async def fetch(self, file: RemoteFile, folder: Path) -> FileRecord:
        """The file in `folder`, under its name. Raises FetchError."""
        try:
            return await self._fetch(file, folder)
        except OSError as error:
            if isinstance(error, aiohttp.ClientError):
                raise
            raise disk_error(error, folder) from None

    async def _fetch(self, file: RemoteFile, folder: Path) -> FileRecord:
        part = await asyncio.to_thread(PartFile, folder / file.name, file.checksum, file.size)
        room = _Room(folder, self._progress, self._max_bytes)
        receiver = _Receiver(self._web, file, part, self._progress, room)
        try:
            for _ in range(2):
                await self._patience.keep_trying(
                    lambda progressed: receiver.receive(self._source.request(file), progressed), file.name
                )
                if not receiver.can_be_checked or part.matches():
                    await asyncio.to_thread(part.finish)
                    return FileRecord(size=part.size, sha256=part.sha256, identity=file.identity)
                part.restart()
        finally:
            part.close()
        assert file.checksum is not None
        message = f"{file.name} differs from the {file.checksum.kind} that its source states, twice; upload it again, or look at the proxy"
        raise FetchError(Reason.CHECKSUM_MISMATCH, message)


class _Room:
    """How much may still be written, for files whose size was not known beforehand."""

    def __init__(self, folder: Path, progress: Progress, max_bytes: int | None) -> None:
        self._folder = folder
        self._progress = progress
        self._max_bytes = max_bytes

    def check(self, new_bytes: int) -> None:
        """FetchError if `new_bytes` more are too many."""
        if self._max_bytes is not None and self._progress.done_bytes + new_bytes > self._max_bytes:
            message = (
                f"the source sends more than the {self._max_bytes} bytes of a pod's model cache; "
                "enlarge models.cache.size of the chart"
            )
            raise FetchError(Reason.NO_SPACE, message)
        if shutil.disk_usage(self._folder).free < new_bytes + _RESERVE_BYTES:
            raise FetchError(Reason.NO_SPACE, "the model cache is full; enlarge it, or remove models that nobody uses")


class _Receiver:
    """Attempts at one file, which share what has arrived."""

    def __init__(self, web: WebClient, file: RemoteFile, part: PartFile, progress: Progress, room: _Room) -> None:
        self._room = room
        self._web = web
        self._file = file
        self._part = part
        self._progress = progress
        self.can_be_checked = True

    async def receive(self, request: Request, progressed: Callable[[], None]) -> None:
        """Everything that is still missing. Raises TransientError where another attempt may do better."""
        file, part = self._file, self._part
        if (file.size is not None and part.size > file.size) or not self._is_continuable():
            part.restart()
        self._progress.on_file(file.name, part.size)
        if file.size is not None and part.size == file.size:
            return
        async with self._web.open(_continued(request, part)) as response:
            total = await self._accept(response)
            await self._copy(response, total, progressed)
        if total is not None and part.size < total:
            raise TransientError(f"{shown(file.url)}: the connection ended after {part.size} of {total} bytes")

    def _is_continuable(self) -> bool:
        """Whether what is there can be told from the beginning of another version: by a checksum at the end, or by a strong ETag now."""
        etag, listed = self._part.etag, self._file.etag
        if self._part.size == 0 or self._file.checksum is not None:
            return True
        return etag is not None and _is_strong(etag) and (listed is None or listed.strip('"') == etag.strip('"'))

    async def _accept(self, response: aiohttp.ClientResponse) -> int | None:
        """Decides what the answer's bytes are; the whole file's size, if known."""
        part, file = self._part, self._file
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.restart()
            raise TransientError(f"{shown(file.url)}: the file has become shorter")
        await check_status(response, shown(file.url))
        start, total = 0, response.content_length
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            start, total = _range(response.headers.get("Content-Range", ""))
        if start not in {0, part.size}:
            part.restart()
            raise TransientError(f"{shown(file.url)}: the answer begins at byte {start}, which was not asked for")
        if start != part.size:
            part.restart()
        if file.size is not None and total is not None and total != file.size:
            part.restart()
            raise TransientError(f"{shown(file.url)}: has {total} bytes, and the source listed {file.size}")
        self.can_be_checked = not _is_keyed(response, file.checksum)
        if part.size == 0:
            part.set_etag(response.headers.get("ETag"))
        return total if file.size is None else file.size

    async def _copy(self, response: aiohttp.ClientResponse, total: int | None, progressed: Callable[[], None]) -> None:
        async for data in response.content.iter_chunked(_WRITE_BYTES):
            if total is not None and self._part.size + len(data) > total:
                self._part.restart()
                raise TransientError(f"{shown(self._file.url)}: sends more than the {total} bytes that it announced")
            if total is None:
                self._check_room(len(data))
            await asyncio.to_thread(self._part.write, data)
            self._progress.received_bytes += len(data)
            self._progress.on_file(self._file.name, self._part.size)
            progressed()

    def _check_room(self, new_bytes: int) -> None:
        try:
            self._room.check(new_bytes)
        except FetchError:
            self._part.restart()  # what nobody can use must not fill a disk that others share
            raise


def _continued(request: Request, part: PartFile) -> Request:
    """The rest only, and only if it is still the same file; a weak ETag cannot promise that."""
    if part.size == 0:
        return request
    headers = {**request.headers, "Range": f"bytes={part.size}-"}
    etag = part.etag
    if etag is not None and _is_strong(etag):
        headers["If-Range"] = etag
    return Request(url=request.url, headers=headers, secret_headers=request.secret_headers)


def _is_strong(etag: str) -> bool:
    return not etag.startswith("W/")


def _range(header: str) -> tuple[int, int | None]:
    """First byte and total of "bytes 5-9/10"; (-1, None) for anything else."""
    unit, _, rest = header.partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdecimal() or max(len(first), len(total)) > MAX_SIZE_DIGITS:
        return -1, None
    return int(first), int(total) if total.isdecimal() else None


def _is_keyed(response: aiohttp.ClientResponse, checksum: Checksum | None) -> bool:
    """Whether an object is encrypted with a key of its own: its ETag is then no MD5 of its bytes."""
    if checksum is None or checksum.kind != "md5":
        return False
    return response.headers.get(_ENCRYPTION_HEADER, "AES256") != "AES256" or _CUSTOMER_KEY_HEADER in response.headers
