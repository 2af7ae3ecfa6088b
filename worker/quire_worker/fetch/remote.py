"""What a source offers: files with sizes and checksums, and the request that gets each.

Source is implemented by `hub`, `s3` and `web`. This module must not know the network or the disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True)
class Request:
    """A GET."""

    url: str
    """As it goes over the wire: quoted already."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent wherever a redirect leads."""
    secret_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent to the first host only."""


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """A digest that the source vouches for."""

    kind: Literal["sha256", "md5", "git-sha1"]
    hexdigest: str


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a model."""

    name: str
    """Relative to the model's folder, checked by `selection.check_name`."""
    url: str
    size: int | None
    """Bytes; None if the source does not say it."""
    checksum: Checksum | None = None
    etag: str | None = None
    """Tells versions apart where there is no checksum."""
    is_archive: bool = False
    """Holds the model's files instead of being one."""

    @property
    def identity(self) -> str | None:
        """The same for the same bytes; None if the source gives nothing to tell by."""
        if self.checksum is not None:
            return f"{self.checksum.kind}:{self.checksum.hexdigest}"
        return None if self.etag is None else f"etag:{self.etag}"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files that a model needs."""

    files: tuple[RemoteFile, ...]
    version: str | None
    """The commit that a branch or tag stands for now; None where sources have none."""


class Source(Protocol):
    """Where a model comes from."""

    async def listing(self) -> Listing:
        """The files. Raises FetchError, TransientError or aiohttp's errors."""

    def request(self, file: RemoteFile) -> Request:
        """How to get it; made anew for each attempt, because signatures have a time."""
