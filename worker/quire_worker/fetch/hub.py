"""hf://: a repository of the Hugging Face hub, or of a mirror that speaks its API. One commit is resolved first, then all files are of it.

Large files have their SHA-256 in the listing, small ones their git blob id; both are checked.
"""

from collections.abc import Mapping
from urllib.parse import quote

import aiohttp
import msgspec

from quire_worker.fetch import selection
from quire_worker.fetch.errors import FetchError, Reason, TransientError
from quire_worker.fetch.remote import Checksum, Listing, RemoteFile, Request
from quire_worker.fetch.web_client import WebClient, check_status, read_bounded, shown
from quire_worker.models.safetensors_files import INDEX_NAME

_MAX_LISTING_BYTES = 64 * 1024 * 1024
_DEFAULT_REVISION = "main"
_ERROR_CODE = "X-Error-Code"


class _Lfs(msgspec.Struct):
    sha256: str
    size: int


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blob_id: str | None = msgspec.field(default=None, name="blobId")
    lfs: _Lfs | None = None


class _Repository(msgspec.Struct):
    sha: str
    siblings: list[_Sibling]


class HubSource:
    """One revision of one repository."""

    def __init__(
        self, web: WebClient, *, endpoint: str, repository: str, revision: str | None, token: str | None
    ) -> None:
        """`repository` is "org/name" or "name"; `revision` a commit, tag or branch."""
        self._web = web
        self._endpoint = endpoint.rstrip("/")
        self._repository = repository
        self._revision = revision or _DEFAULT_REVISION
        self._token = token

    async def listing(self) -> Listing:
        """The files of the commit that the revision stands for now."""
        revision = quote(self._revision, safe="")
        url = f"{self._endpoint}/api/models/{quote(self._repository)}/revision/{revision}?blobs=true"
        repository = self._decode(await self._read(url, _MAX_LISTING_BYTES))
        siblings = {sibling.rfilename: sibling for sibling in repository.siblings}
        index = None
        if INDEX_NAME in siblings:
            index = await self._read(self._file_url(repository.sha, INDEX_NAME), selection.MAX_INDEX_BYTES)
        names = selection.needed(siblings, index)
        files = tuple(self._file(siblings[name], repository.sha) for name in names)
        return Listing(files=files, version=repository.sha)

    def request(self, file: RemoteFile) -> Request:
        """The hub redirects large files to a content network, which must not see the token."""
        return Request(url=file.url, secret_headers=self._authorization())

    def _file(self, sibling: _Sibling, commit: str) -> RemoteFile:
        size, checksum = sibling.size, None
        if sibling.lfs is not None:
            size, checksum = sibling.lfs.size, Checksum(kind="sha256", hexdigest=sibling.lfs.sha256.lower())
        elif sibling.blob_id is not None and size is not None:
            checksum = Checksum(kind="git-sha1", hexdigest=sibling.blob_id.lower())
        url = self._file_url(commit, sibling.rfilename)
        return RemoteFile(name=sibling.rfilename, url=url, size=size, checksum=checksum)

    def _file_url(self, commit: str, name: str) -> str:
        return f"{self._endpoint}/{quote(self._repository)}/resolve/{quote(commit, safe='')}/{quote(name)}"

    def _authorization(self) -> Mapping[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    async def _read(self, url: str, max_bytes: int) -> bytes:
        async with self._web.open(Request(url=url, secret_headers=self._authorization())) as response:
            await self._check(response, shown(url))
            return await read_bounded(response, max_bytes, shown(url))

    async def _check(self, response: aiohttp.ClientResponse, what: str) -> None:
        """The hub says in a header what a status means: it answers 401, not 404, for a repository that does not exist."""
        match response.headers.get(_ERROR_CODE):
            case "RepoNotFound" if self._token is not None:
                message = f"the hub knows no repository {self._repository} that this token may read; correct spec.model.uri, or the token"
                raise FetchError(Reason.NOT_FOUND, message)
            case "RevisionNotFound":
                message = f"{self._repository} has no revision {self._revision}; correct spec.model.revision"
                raise FetchError(Reason.NOT_FOUND, message)
            case "EntryNotFound":
                raise FetchError(Reason.NOT_FOUND, f"{what}: the hub lists this file but does not have it")
        await check_status(response, what, self._hint())

    def _hint(self) -> str:
        if self._token is None:
            return (
                f"{self._repository} does not exist, or is private or gated: correct the name, "
                "or name a Secret with key HF_TOKEN in spec.model.secretRef"
            )
        return f"the token in HF_TOKEN may not read {self._repository}: accept the model's terms on the hub, or use another token"

    def _decode(self, body: bytes) -> _Repository:
        try:
            return msgspec.json.decode(body, type=_Repository)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # A captive proxy answers 200 with a page of its own; the hub itself never does.
            raise TransientError(f"{self._endpoint} answers, but not as a model hub") from None
