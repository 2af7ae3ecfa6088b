"""From a request's body to block hashes: with each endpoint's own prompt bundle, or from the bare text where there is none.

A prompt that cannot be rendered is no error here: the worker will say what is wrong with it, and the router chooses with less knowledge.
So it does for one that is certainly too long for the model, and for one that comes while too many long ones are being read.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from hashlib import blake2b
from typing import Any, TypeVar

from quire_contract.block_hash import SCHEME, ExtraKeys, token_bytes
from quire_contract.model_folder import ModelFolderError
from quire_contract.openai.errors import ApiError
from quire_contract.openai.messages import template_message
from quire_contract.openai.requests import RoutingFields, prompt_list
from quire_contract.prompt import PromptError, PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.telemetry import log_event
from quire_router.prompt_cache import PromptCache
from quire_router.prompt_job import AnyJob, PromptBlocks, Reader, begin_job

__all__ = ["BundleError", "PromptBlocks", "PromptReader", "read_text"]

log = logging.getLogger("quire_router.prompts")
T = TypeVar("T")

INLINE_BODY_BYTES = 8192
"""Bodies up to this size are rendered on the event loop, and what the cache knows of them costs no more than that."""
INLINE_CHARS = 2048
"""So much text is tokenised on the event loop (well under a millisecond); handing it to a thread would cost more."""
PORTION_CHARS = 16 * 1024
"""Longer text is tokenised in a thread, so much at a time (about 10 ms), in turn with other prompts."""
MAX_READS = 64
"""Prompts that are being read in threads; further ones are routed by their text."""
MAX_READS_OF_TENANT = 8
TEXT_BLOCK_BYTES = 256
MAX_TEXT_BYTES = 512 * 1024
"""Text beyond this is not looked at: it would hold up the event loop for milliseconds."""
BYTES_PER_TOKEN = 4
"""For estimates where no tokenizer is known."""
_UNREADABLE = (ApiError, OverflowError, TypeError)


class BundleError(Exception):
    """A prompt bundle that cannot be used here."""


class PromptReader:
    """Renders, tokenises and hashes prompts, by bundle digest. Long ones in `executor`."""

    def __init__(self, executor: Executor, parts: Any = None) -> None:
        """`parts`: the extension module `native`; None: prompts are read by Python, which gives the same blocks."""
        self._executor = executor
        self._readers: dict[str, Reader] = {}
        self._usual: dict[str, Callable[[RoutingFields, str | None, str | None], PromptBlocks | None]] = {}
        """By digest, what reads chats of plain messages of a known shape, with little new text; None: it is none."""
        self._parts = parts
        self._cache: Any = PromptCache() if parts is None else parts.PromptCache(PromptBlocks)
        """Keeps what prompts have in common."""
        self._reads: Counter[str] = Counter()
        """Being read in threads, by tenant."""

    def knows(self, digest: str) -> bool:
        """Whether the bundle is here."""
        return digest in self._readers

    def bundle(self, digest: str) -> PromptBundle | None:
        """The bundle of that digest, if it is here."""
        reader = self._readers.get(digest)
        return None if reader is None else reader.bundle

    def renderer(self, digest: str) -> PromptRenderer | None:
        """What reads and writes token ids by the bundle of that digest, if it is here."""
        reader = self._readers.get(digest)
        return None if reader is None else reader.renderer

    def add(self, digest: str, bundle: PromptBundle) -> None:
        """A bundle that a worker gave. BundleError if it cannot be used."""
        if bundle.scheme != SCHEME:
            raise BundleError(
                f"hashes blocks by {bundle.scheme!r}, this router knows {SCHEME!r}; use router and worker of one release"
            )
        try:
            reader = self._readers[digest] = Reader.of(digest, bundle, self._parts)
        except (PromptError, ModelFolderError) as error:
            raise BundleError(str(error)) from None
        if self._parts is not None:
            self._usual[digest] = self._usual_chats(reader)

    def keep_only(self, digests: Iterable[str]) -> None:
        """Drop bundles that no endpoint uses any more."""
        wanted = set(digests)
        for digest in [d for d in self._readers if d not in wanted]:
            del self._readers[digest]
            self._usual.pop(digest, None)

    def _usual_chats(self, reader: Reader) -> Any:
        template = reader.renderer.template
        return self._parts.ChatReader(
            self._cache,
            reader.native,
            template.shapes,
            template.known_pieces,
            template="default",
            max_chars=template.max_chars,
            max_new_chars=INLINE_CHARS,
        ).read

    def read_at_once(
        self, fields: RoutingFields, num_bytes: int, digest: str, adapter: str | None, cache_salt: str | None
    ) -> PromptBlocks | None:
        """As `read`, of usual prompts, which nobody need wait for. None: only `read` can tell."""
        usual = self._usual.get(digest)
        if usual is None or num_bytes > INLINE_BODY_BYTES:
            return None
        try:
            return usual(fields, adapter, cache_salt)
        except _UNREADABLE:  # `read` will come upon it as well, and say so
            return None

    async def read(
        self, fields: RoutingFields, num_bytes: int, digest: str, *, keys: ExtraKeys | None = None, tenant: str = ""
    ) -> PromptBlocks | None:
        """The first prompt of a body of `num_bytes`, hashed with the bundle and `keys` (None: the body's own salt).

        None: the bundle is not here, the prompt cannot be read, or too many are just being read, of `tenant` or in all."""
        reader = self._readers.get(digest)
        if reader is None:
            return None
        keys = ExtraKeys(cache_salt=fields.cache_salt) if keys is None else keys
        try:
            usual = self.read_at_once(fields, num_bytes, digest, keys.adapter, keys.cache_salt)
            return await self._read(reader, fields, keys, num_bytes, tenant) if usual is None else usual
        except _UNREADABLE as error:
            log_event(log, logging.DEBUG, "prompt_unreadable", error=type(error).__name__)
            return None

    async def _read(
        self, reader: Reader, fields: RoutingFields, keys: ExtraKeys, num_bytes: int, tenant: str
    ) -> PromptBlocks | None:
        if num_bytes <= INLINE_BODY_BYTES:
            job = begin_job(reader, self._cache, fields, keys)
            if job is None and num_bytes <= INLINE_CHARS:
                return reader.read_whole(fields, keys)
            if job is not None and job.missing_chars <= INLINE_CHARS:
                job.advance(INLINE_CHARS)
                return job.blocks()
        else:
            job = None
        with self._place(tenant) as is_free:
            return await self._read_in_thread(reader, fields, keys, job) if is_free else None

    async def _read_in_thread(
        self, reader: Reader, fields: RoutingFields, keys: ExtraKeys, job: AnyJob | None
    ) -> PromptBlocks:
        """A portion at a time, so that prompts take turns however long each is."""
        if job is None:
            job = await self._in_thread(lambda: begin_job(reader, self._cache, fields, keys))
        if job is None:
            return await self._in_thread(lambda: reader.read_whole(fields, keys))
        while job.missing_chars:
            await self._in_thread(lambda: job.advance(PORTION_CHARS))
        return job.blocks()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    @contextlib.contextmanager
    def _place(self, tenant: str) -> Iterator[bool]:
        """A place among those that are read in threads, if one is free. Without tenants all may be one's."""
        if self._reads.total() >= MAX_READS or (tenant and self._reads[tenant] >= MAX_READS_OF_TENANT):
            yield False
            return
        self._reads[tenant] += 1
        try:
            yield True
        finally:
            self._reads[tenant] -= 1
            if not self._reads[tenant]:
                del self._reads[tenant]


def read_text(fields: RoutingFields, keys: ExtraKeys | None = None) -> PromptBlocks:
    """The prompt's text cut into blocks: an estimate that needs no tokenizer. Serves the approximate and the hash level."""
    text = _text_of(fields)
    keys = ExtraKeys(cache_salt=fields.cache_salt) if keys is None else keys
    root = (keys.cache_salt or "") if keys.adapter is None else f"{keys.cache_salt or ''}\x1f{keys.adapter}"
    parent = blake2b(root.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    hashes = []
    for start in range(0, min(len(text), MAX_TEXT_BYTES) - TEXT_BLOCK_BYTES + 1, TEXT_BLOCK_BYTES):
        parent = blake2b(parent + text[start : start + TEXT_BLOCK_BYTES], digest_size=8).digest()
        hashes.append(int.from_bytes(parent, "big"))
    return PromptBlocks(
        num_tokens=_num_tokens(fields, text), block_tokens=TEXT_BLOCK_BYTES // BYTES_PER_TOKEN, hashes=hashes
    )


def _num_tokens(fields: RoutingFields, text: bytes) -> int:
    first = None if fields.messages is not None else prompt_list(fields.prompt or "")[0]
    return len(first) if text and isinstance(first, list) else len(text) // BYTES_PER_TOKEN


def _text_of(fields: RoutingFields) -> bytes:
    """The prompt as bytes of which an extended conversation keeps the beginning. Token ids: four bytes each, no more than are looked at."""
    if fields.messages is not None:
        seen = (template_message(message) for message in fields.messages)
        return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in seen).encode("utf-8", "replace")
    first = prompt_list(fields.prompt or "")[0]
    if isinstance(first, str):
        return first.encode("utf-8", "replace")
    try:
        return token_bytes(first[: MAX_TEXT_BYTES // BYTES_PER_TOKEN])
    except OverflowError:  # no token id of any model: the worker will say so
        return b""
