"""http(s)://: an archive (.tar, .tar.gz, .tgz), or a folder whose files are asked for by the names that models have.

No listing is read: what web servers show as one differs. A bearer token is sent if there is one.
"""

from http import HTTPStatus
from urllib.parse import quote, urlsplit

import aiohttp

from quire_worker.fetch import selection
from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.fetch.remote import Listing, RemoteFile, Request
from quire_worker.fetch.web_client import MAX_SIZE_DIGITS, WebClient, check_status, shown
from quire_worker.models.safetensors_files import INDEX_NAME, SINGLE_NAME

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
ARCHIVE_NAME = ".archive"


class WebSource:
    """One archive or folder."""

    def __init__(self, web: WebClient, *, url: str, token: str | None) -> None:
        """`url` may have a query only for an archive."""
        self._web = web
        self._url = url
        self._token = token

    async def listing(self) -> Listing:
        """Every file with its size and ETag, which a first byte of each tells."""
        parts = urlsplit(self._url)
        if parts.path.endswith(ARCHIVE_SUFFIXES):
            archive = await self._look(ARCHIVE_NAME, self._url)
            if archive is None:
                raise FetchError(Reason.NOT_FOUND, f"{shown(self._url)}: not there; correct spec.model.uri")
            return Listing(files=(archive,), version=None)
        if parts.query:
            message = f"{shown(self._url)}: a folder's address has no query; only an archive's ({', '.join(ARCHIVE_SUFFIXES)}) may"
            raise FetchError(Reason.INVALID_MODEL, message)
        found = await self._look_for((selection.CONFIG, selection.TOKENIZER, *selection.OPTIONAL, INDEX_NAME))
        if selection.CONFIG not in found:
            message = f"{shown(self._url)} has no {selection.CONFIG}; name a model's folder, or an archive ({', '.join(ARCHIVE_SUFFIXES)})"
            raise FetchError(Reason.NOT_FOUND, message)
        if selection.MODULES in found:
            found |= await self._look_for(selection.OF_MODULES)
        index = await self._index(found.get(INDEX_NAME))
        weights = [SINGLE_NAME] if index is None else selection.shards(index)
        found |= await self._look_for(weights)
        return Listing(files=tuple(found[name] for name in selection.needed(found, index)), version=None)

    def request(self, file: RemoteFile) -> Request:
        """With the token, on the source's own host."""
        return self._request(file.url)

    def _request(self, url: str, *, first_byte_only: bool = False) -> Request:
        token = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        return Request(url=url, headers={"Range": "bytes=0-0"} if first_byte_only else {}, secret_headers=token)

    async def _index(self, file: RemoteFile | None) -> bytes | None:
        return None if file is None else await self._web.read(self.request(file), selection.MAX_INDEX_BYTES)

    async def _look_for(self, names: list[str] | tuple[str, ...]) -> dict[str, RemoteFile]:
        base = self._url.rstrip("/")
        looked = {name: await self._look(name, f"{base}/{quote(name)}") for name in names}
        return {name: file for name, file in looked.items() if file is not None}

    async def _look(self, name: str, url: str) -> RemoteFile | None:
        """None if the server does not have it. Asks for one byte: not every server answers HEAD, and signed URLs are for GET only."""
        async with self._web.open(self._request(url, first_byte_only=True)) as response:
            if response.status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
                return None
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return RemoteFile(name=name, url=url, size=0)
            await check_status(response, shown(url), self._hint())
            etag = response.headers.get("ETag")
            return RemoteFile(name=name, url=url, size=_size(response), etag=etag, is_archive=name == ARCHIVE_NAME)

    def _hint(self) -> str:
        return (
            "name a Secret with key TOKEN in spec.model.secretRef"
            if self._token is None
            else "the TOKEN in the Secret of spec.model.secretRef is not accepted"
        )


def _size(response: aiohttp.ClientResponse) -> int | None:
    """Of the whole file."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isascii() and total.isdecimal() and len(total) <= MAX_SIZE_DIGITS else None
    return response.content_length
