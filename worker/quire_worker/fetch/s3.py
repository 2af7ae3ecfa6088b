"""s3://: objects below a prefix of a bucket, on AWS or a store that imitates it. Signed if there are credentials, else anonymous.

Addresses are path-style (endpoint/bucket/key), which every store understands.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import urlsplit
from xml.etree import ElementTree

import aiohttp

from quire_worker.fetch import selection, sigv4
from quire_worker.fetch.errors import FetchError, Reason, TransientError
from quire_worker.fetch.remote import Checksum, Listing, RemoteFile, Request
from quire_worker.fetch.sigv4 import Credentials
from quire_worker.fetch.web_client import MAX_SIZE_DIGITS, WebClient, check_status, read_bounded
from quire_worker.models.safetensors_files import INDEX_NAME

DEFAULT_REGION = "us-east-1"
_MAX_PAGES = 50
_MAX_PAGE_BYTES = 16 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_REGION_HEADER = "x-amz-bucket-region"
_REGION = re.compile(r"[a-z0-9-]{2,40}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_UNAUTHORIZED_CODES = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "RequestTimeTooSkewed",
    }
)


class S3Source:
    """The objects below one prefix."""

    def __init__(
        self,
        web: WebClient,
        *,
        bucket: str,
        prefix: str,
        endpoint: str | None,
        region: str | None,
        credentials: Credentials | None,
        now: Callable[[], datetime],
    ) -> None:
        """`endpoint` None means AWS. A wrong `region` is put right by what the store answers."""
        self._web = web
        self._bucket = bucket
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self._endpoint = None if endpoint is None else endpoint.rstrip("/")
        self._region = region or DEFAULT_REGION
        self._credentials = credentials
        self._now = now

    async def listing(self) -> Listing:
        """The objects of a model directly below the prefix."""
        objects: dict[str, RemoteFile] = {}
        token: str | None = None
        for _ in range(_MAX_PAGES):
            page = await self._page(token)
            objects |= {file.name: file for file in self._files(page)}
            token = _text(page, "NextContinuationToken")
            if _text(page, "IsTruncated") != "true" or not token:
                break
        if not objects:
            raise FetchError(
                Reason.NOT_FOUND, f"s3://{self._bucket}/{self._prefix} has no objects; correct spec.model.uri"
            )
        index = None
        if INDEX_NAME in objects:
            index = await self._get(self.request(objects[INDEX_NAME]), selection.MAX_INDEX_BYTES)
        return Listing(files=tuple(objects[name] for name in selection.needed(objects, index)), version=None)

    def request(self, file: RemoteFile) -> Request:
        """Signed for now."""
        return self._signed(urlsplit(file.url).path, "")

    async def _page(self, token: str | None) -> ElementTree.Element:
        pairs = [("list-type", "2"), ("prefix", self._prefix), ("max-keys", "1000")]
        if token:
            pairs.append(("continuation-token", token))
        path, query = f"/{self._bucket}", sigv4.encode_query(pairs)
        try:
            body = await self._get(self._signed(self._base_path() + path, query), _MAX_PAGE_BYTES)
        except _OtherRegionError as error:
            self._region = error.region
            body = await self._get(self._signed(self._base_path() + path, query), _MAX_PAGE_BYTES)
        return self._parse(body)

    def _files(self, page: ElementTree.Element) -> list[RemoteFile]:
        found = []
        for entry in _children(page, "Contents"):
            key, size = _text(entry, "Key") or "", _text(entry, "Size") or ""
            name = key.removeprefix(self._prefix)
            if not name or name.endswith("/") or not key.startswith(self._prefix) or not size.isdecimal():
                continue
            if len(size) > MAX_SIZE_DIGITS:
                continue
            etag = (_text(entry, "ETag") or "").strip('"')
            # The ETag of an object that was uploaded in one part is its MD5; of several parts, it has a dash.
            checksum = Checksum(kind="md5", hexdigest=etag) if _MD5.fullmatch(etag) else None
            url = f"{self._base()}/{self._bucket}/{sigv4.encode_path(key)}"
            found.append(RemoteFile(name=name, url=url, size=int(size), checksum=checksum, etag=etag or None))
        return found

    async def _get(self, request: Request, max_bytes: int) -> bytes:
        async with self._web.open(request) as response:
            await self._check(response)
            return await read_bounded(response, max_bytes, self._what())

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status < 300:
            return
        region = response.headers.get(_REGION_HEADER, "")
        if (
            status in {301, 307, 400, 403}
            and _REGION.fullmatch(region)
            and region != self._region
            and self._endpoint is None
        ):
            raise _OtherRegionError(region)
        code = _error_code(await read_bounded(response, _MAX_ERROR_BYTES, self._what()))
        if code in {"NoSuchBucket", "NoSuchKey"}:
            raise FetchError(Reason.NOT_FOUND, f"{self._what()}: {code}; correct spec.model.uri")
        if code in _UNAUTHORIZED_CODES:
            raise FetchError(Reason.UNAUTHORIZED, f"{self._what()}: {code}; {self._hint()}")
        await check_status(response, self._what(), self._hint())

    def _hint(self) -> str:
        if self._credentials is None:
            return "name a Secret with keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in spec.model.secretRef"
        return "the credentials need s3:ListBucket on the bucket and s3:GetObject on its objects"

    def _what(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def _base(self) -> str:
        return self._endpoint or f"https://s3.{self._region}.amazonaws.com"

    def _base_path(self) -> str:
        """A store may stand below a path of its host."""
        return urlsplit(self._base()).path

    def _signed(self, path: str, query: str) -> Request:
        parts = urlsplit(self._base())
        url = f"{parts.scheme}://{parts.netloc}{path}" + (f"?{query}" if query else "")
        headers: Mapping[str, str] = {}
        if self._credentials is not None:
            headers = sigv4.sign_get(
                host=parts.netloc,
                path=path,
                query=query,
                region=self._region,
                credentials=self._credentials,
                now=self._now(),
            )
        return Request(url=url, secret_headers=headers)

    def _parse(self, body: bytes) -> ElementTree.Element:
        root = _xml(body)
        if root is None or not root.tag.endswith("ListBucketResult"):
            raise TransientError(f"{self._base()} answers, but not as an S3 store")
        return root


class _OtherRegionError(Exception):
    """The bucket is in another region."""

    def __init__(self, region: str) -> None:
        super().__init__(region)
        self.region = region


def _xml(body: bytes) -> ElementTree.Element | None:
    """The root; None for anything else. A document type, by which XML can be made to grow without bounds, is not S3's."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body or b"\0" in body:  # UTF-16 would hide the other two
        return None
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - without a document type there are no entities to expand
    except ElementTree.ParseError:
        return None


def _children(parent: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """By local name: stores differ in whether they state the namespace."""
    return [child for child in parent if child.tag.rpartition("}")[2] == name]


def _text(parent: ElementTree.Element, name: str) -> str | None:
    found = _children(parent, name)
    return found[0].text if found else None


def _error_code(body: bytes) -> str:
    root = _xml(body)
    return "" if root is None else _text(root, "Code") or ""
