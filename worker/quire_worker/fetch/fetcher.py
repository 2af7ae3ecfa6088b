"""One fetch from beginning to end: wait for the turn, list, download, check, make visible.

This module must not know which kind of source it is, or how the outcome is told.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from quire_contract.telemetry import log_event
from quire_worker.errors import LoadError
from quire_worker.fetch import archive
from quire_worker.fetch.cache import ModelCache
from quire_worker.fetch.downloader import Downloader
from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason
from quire_worker.fetch.lease import Lease
from quire_worker.fetch.part_file import PART_SUFFIX, disk_error
from quire_worker.fetch.patience import Patience
from quire_worker.fetch.progress import Progress
from quire_worker.fetch.remote import Listing, RemoteFile, Source
from quire_worker.fetch.store import ModelStore
from quire_worker.models.safetensors_files import read_entries

log = logging.getLogger(__name__)


class Fetcher:
    """Brings one model into one store."""

    def __init__(
        self,
        *,
        source: Source,
        store: ModelStore,
        cache: ModelCache,
        lease: Lease,
        downloader: Downloader,
        patience: Patience,
        progress: Progress,
        parallel: int,
    ) -> None:
        """`parallel` files at once."""
        self._source = source
        self._store = store
        self._cache = cache
        self._lease = lease
        self._downloader = downloader
        self._patience = patience
        self._progress = progress
        self._turns = asyncio.Semaphore(parallel)

    async def run(self) -> None:
        """The model is complete afterwards. Raises FetchError."""
        try:
            await self._run()
        except BaseExceptionGroup as group:
            raise one_of(group, self._store.dest.parent) from None
        except OSError as error:
            if isinstance(error, aiohttp.ClientError):
                raise
            raise disk_error(error, self._store.dest.parent) from None
        self._progress.enter("done")

    async def _run(self) -> None:
        await asyncio.to_thread(self._store.dest.parent.mkdir, parents=True, exist_ok=True)
        mine = await self._lease.acquire(self._store.use, lambda text: self._progress.enter("resolving", text))
        if not mine:
            log_event(log, logging.INFO, "the model is there", folder=self._store.dest)
            return
        async with self._lease.kept():
            if await asyncio.to_thread(self._store.use):
                return
            await self._fetch()

    async def _fetch(self) -> None:
        store, progress = self._store, self._progress
        await asyncio.to_thread(store.begin)
        progress.enter("resolving")
        listing = await self._patience.keep_trying(
            lambda progressed: self._source.listing(), "listing the model's files"
        )
        await asyncio.to_thread(self._account, listing)
        log_event(
            log,
            logging.INFO,
            "fetching",
            files=len(listing.files),
            size_bytes=progress.total_bytes,
            version=listing.version,
        )
        progress.enter("downloading")
        async with asyncio.TaskGroup() as group:
            for file in listing.files:
                group.create_task(self._file(file))
        progress.enter("verifying")
        names = await asyncio.to_thread(self._unpack, listing)
        await asyncio.to_thread(self._check)
        await asyncio.to_thread(store.finish, names, listing.version)
        await asyncio.to_thread(self._cache.trim, store.size_bytes)
        log_event(log, logging.INFO, "fetched", folder=store.dest, files=len(names), size_bytes=progress.done_bytes)

    def _account(self, listing: Listing) -> None:
        """Sizes: what is there counts as done. An archive needs its own size again, at least, for its content."""
        sizes = {file.name: file.size for file in listing.files}
        known = sum(size for size in sizes.values() if size is not None)
        self._progress.total_bytes = None if None in sizes.values() else known
        for file in listing.files:
            record = self._store.has(file.name, file.identity)
            if record is not None:
                self._progress.on_file(file.name, record.size)
        factor = 2 if any(file.is_archive for file in listing.files) else 1
        there = self._progress.done_bytes + sum(self._part_size(file) for file in listing.files)
        missing_bytes = max(0, known * factor - there)
        self._cache.make_room(known * factor, missing_bytes)
        self._store.check_space(missing_bytes, known * factor, self._cache.max_model_bytes)

    def _part_size(self, file: RemoteFile) -> int:
        part = self._store.partial / (file.name + PART_SUFFIX)
        return part.stat().st_size if part.is_file() else 0

    async def _file(self, file: RemoteFile) -> None:
        if self._store.has(file.name, file.identity) is not None:
            return
        async with self._turns:
            record = await self._downloader.fetch(file, self._store.partial)
        self._store.add(file.name, record)
        log_event(log, logging.INFO, "file complete", file=file.name, size_bytes=record.size, sha256=record.sha256)

    def _unpack(self, listing: Listing) -> list[str]:
        """Names of the model's files."""
        archives = [file.name for file in listing.files if file.is_archive]
        if not archives:
            return [file.name for file in listing.files]
        folder = self._store.partial
        records = archive.extract(folder / archives[0], folder, lambda name, size: None, self._cache.max_model_bytes)
        for name, record in records.items():
            self._store.add(name, record)
        return list(records)

    def _check(self) -> None:
        """Headers of the weights, as the worker reads them; the source's checksums say nothing about whether it is a model."""
        try:
            read_entries(self._store.partial)
        except LoadError as error:
            raise FetchError(Reason.INVALID_MODEL, str(error).replace(f"{self._store.partial}/", "")) from None


def one_of(group: BaseExceptionGroup[BaseException], folder: Path) -> BaseException:
    """Of errors that came at once, the one to tell: one that trying again does not mend before one that it may."""
    leaves = list(_leaves(group))
    known = [error for error in leaves if isinstance(error, FetchError)]
    known += [
        disk_error(error, folder)
        for error in leaves
        if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError)
    ]
    known.sort(key=lambda error: isinstance(error, InterruptedFetchError))
    return known[0] if known else leaves[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
