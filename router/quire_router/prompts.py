"""From a request's body to block hashes: with each endpoint's own prompt bundle, or from the bare text where there is none.

A prompt that cannot be rendered is no error here: the worker will say what is wrong with it, and the router chooses with less knowledge.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Executor
from hashlib import blake2b

import msgspec

from quire_contract.block_hash import SCHEME, ExtraKeys, hash_blocks, token_bytes, wire_hashes
from quire_contract.model_folder import ModelFolderError
from quire_contract.openai.errors import ApiError
from quire_contract.openai.messages import template_message
from quire_contract.openai.requests import RoutingFields, prompt_list
from quire_contract.prompt import PromptError, PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.prompt_input import TextInput
from quire_contract.telemetry import log_event

log = logging.getLogger("quire_router.prompts")

INLINE_BYTES = 2048
"""Bodies up to this size are tokenised on the event loop (well under a millisecond); handing them to a thread would cost more."""
TEXT_BLOCK_BYTES = 256
MAX_TEXT_BYTES = 512 * 1024
"""Text beyond this is not looked at: it would hold up the event loop for milliseconds."""
BYTES_PER_TOKEN = 4
"""For estimates where no tokenizer is known."""


class BundleError(Exception):
    """A prompt bundle that cannot be used here."""


class PromptBlocks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A prompt as an endpoint's cache sees it."""

    num_tokens: int
    block_tokens: int
    """Tokens of one block."""
    hashes: list[int]
    """Wire hashes of the full blocks, chained."""


class PromptReader:
    """Renders, tokenises and hashes prompts, by bundle digest. Long ones in `executor`."""

    def __init__(self, executor: Executor, *, max_cached: int = 1024, max_cached_blocks: int = 1_000_000) -> None:
        """At most `max_cached` prompts are remembered, with at most `max_cached_blocks` hashes (about 45 bytes each) in all."""
        self._executor = executor
        self._bundles: dict[str, tuple[PromptBundle, PromptRenderer]] = {}
        self._cache: OrderedDict[tuple[str, bytes, str], PromptBlocks] = OrderedDict()
        self._max_cached = max_cached
        self._max_cached_blocks = max_cached_blocks
        self._cached_blocks = 0

    def knows(self, digest: str) -> bool:
        """Whether the bundle is here."""
        return digest in self._bundles

    def bundle(self, digest: str) -> PromptBundle | None:
        """The bundle of that digest, if it is here."""
        entry = self._bundles.get(digest)
        return entry and entry[0]

    def add(self, digest: str, bundle: PromptBundle) -> None:
        """A bundle that a worker gave. BundleError if it cannot be used."""
        if bundle.scheme != SCHEME:
            raise BundleError(
                f"hashes blocks by {bundle.scheme!r}, this router knows {SCHEME!r}; use router and worker of one release"
            )
        try:
            self._bundles[digest] = (bundle, PromptRenderer(bundle))
        except (PromptError, ModelFolderError) as error:
            raise BundleError(str(error)) from None

    def keep_only(self, digests: Iterable[str]) -> None:
        """Drop bundles that no endpoint uses any more."""
        wanted = set(digests)
        for digest in [d for d in self._bundles if d not in wanted]:
            del self._bundles[digest]

    async def read(self, fields: RoutingFields, body: bytes, digest: str, path: str = "") -> PromptBlocks | None:
        """The first prompt in a body, hashed with the bundle. None: the bundle is not here, or the prompt cannot be rendered.

        `path` says whose body it is: the same bytes may mean another prompt in another API. So may `fields.cache_salt` where a
        tenant's own took the body's place."""
        entry = self._bundles.get(digest)
        if entry is None:
            return None
        key = (digest, blake2b(body, digest_size=16, key=path.encode()).digest(), fields.cache_salt or "")
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            return known
        if len(body) <= INLINE_BYTES:
            blocks = _read(entry, fields)
        else:
            loop = asyncio.get_running_loop()
            blocks = await loop.run_in_executor(self._executor, _read, entry, fields)
        if blocks is not None:
            self._remember(key, blocks)
        return blocks

    @property
    def num_cached_blocks(self) -> int:
        """Hashes remembered over all prompts."""
        return self._cached_blocks

    def _remember(self, key: tuple[str, bytes, str], blocks: PromptBlocks) -> None:
        """The least lately used go first. One body may be read twice at once, so the key may be here already."""
        before = self._cache.pop(key, None)
        self._cached_blocks += len(blocks.hashes) - (0 if before is None else len(before.hashes))
        self._cache[key] = blocks
        while len(self._cache) > self._max_cached or self._cached_blocks > self._max_cached_blocks:
            _, oldest = self._cache.popitem(last=False)
            self._cached_blocks -= len(oldest.hashes)


def read_text(fields: RoutingFields) -> PromptBlocks:
    """The prompt's text cut into blocks: an estimate that needs no tokenizer. Serves the approximate and the hash level."""
    text = _text_of(fields)
    parent = blake2b((fields.cache_salt or "").encode(), digest_size=8).digest()
    hashes = []
    for start in range(0, min(len(text), MAX_TEXT_BYTES) - TEXT_BLOCK_BYTES + 1, TEXT_BLOCK_BYTES):
        parent = blake2b(parent + text[start : start + TEXT_BLOCK_BYTES], digest_size=8).digest()
        hashes.append(int.from_bytes(parent, "big"))
    return PromptBlocks(
        num_tokens=len(text) // BYTES_PER_TOKEN, block_tokens=TEXT_BLOCK_BYTES // BYTES_PER_TOKEN, hashes=hashes
    )


def _text_of(fields: RoutingFields) -> bytes:
    """The prompt as bytes of which an extended conversation keeps the beginning. Token ids: four bytes each."""
    if fields.messages is not None:
        seen = (template_message(message) for message in fields.messages)
        return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in seen).encode("utf-8", "replace")
    first = prompt_list(fields.prompt or "")[0]
    if isinstance(first, str):
        return first.encode("utf-8", "replace")
    try:
        return token_bytes(first)
    except OverflowError:  # no token id of any model: the worker will say so
        return b""


def _read(entry: tuple[PromptBundle, PromptRenderer], fields: RoutingFields) -> PromptBlocks | None:
    bundle, renderer = entry
    try:
        token_ids = _first_prompt(renderer, fields)
        digests = hash_blocks(token_ids, bundle.block_size, ExtraKeys(cache_salt=fields.cache_salt))
    except (PromptError, ApiError, OverflowError, TypeError) as error:
        log_event(log, logging.DEBUG, "prompt_unreadable", error=type(error).__name__)
        return None
    return PromptBlocks(num_tokens=len(token_ids), block_tokens=bundle.block_size, hashes=wire_hashes(digests))


def _first_prompt(renderer: PromptRenderer, fields: RoutingFields) -> list[int]:
    source = fields.prompt_input()
    if isinstance(source, TextInput):
        return renderer.cut(renderer.completion(source.prompts[0], source.add_special_tokens), source)
    return renderer.request_prompts(fields)[0]
