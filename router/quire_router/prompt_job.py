"""Reads one prompt in steps: what the cache knows at once, the rest a portion at a time, so that a long prompt leaves room for others.

Knows no threads: whoever advances a job decides where. The C++ of `native` has a twin of `Job` with the cache that belongs to it.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from quire_contract.block_hash import TOKEN_SIZE_BYTES, BlockChain, ExtraKeys, hash_blocks, token_bytes, wire_hashes
from quire_contract.openai.errors import invalid
from quire_contract.openai.requests import RoutingFields
from quire_contract.prompt import PromptRenderer
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.prompt_input import ChatInput, TextInput
from quire_contract.prompt_segments import KNOWN_SPLITS, MAX_KEPT_CHARS, MIN_CHARS, SegmentedEncoder
from quire_router.prompt_cache import PromptCache, Step

MAX_NEW_CHARS = 256 * 1024
"""Of one prompt, no more text that the cache does not know is tokenised; the rest counts by its length. So much takes 0.1 to 0.3 s in a
thread and tells workers apart as well as all of it; when the conversation goes on, the next part is read."""
CHARS_PER_TOKEN = 4.0
"""Until the prompt itself says it."""


class PromptBlocks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A prompt as an endpoint's cache sees it."""

    num_tokens: int
    """Exact, unless the prompt is longer than what is read of one."""
    block_tokens: int
    """Tokens of one block."""
    hashes: list[int]
    """Wire hashes of the full blocks, chained."""


class AnyJob(Protocol):
    """One prompt on its way, in Python or C++. `advance` until nothing is missing, then `blocks`."""

    @property
    def missing_chars(self) -> int:
        """Text still to be tokenised."""
        ...

    def advance(self, num_chars: int, /) -> None:
        """Tokenise segments until `num_chars` are done, at least one."""
        ...

    def blocks(self) -> PromptBlocks:
        """What was read."""
        ...


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """What reads prompts for one bundle."""

    digest: str
    bundle: PromptBundle
    renderer: PromptRenderer
    encoder: SegmentedEncoder
    native: Any = None
    """The PromptEncoder that does `encoder`'s work in C++, for a cache that is C++ too. None: both are Python."""

    @classmethod
    def of(cls, digest: str, bundle: PromptBundle, parts: Any = None) -> "Reader":
        """PromptError or ModelFolderError if the bundle cannot be used. `parts`: the extension module, if that is to read prompts."""
        renderer = PromptRenderer(bundle)
        encoder = SegmentedEncoder(renderer.tokenizer, bundle.tokenizer_json)
        native = None if parts is None else _native_encoder(parts, digest, renderer, encoder)
        return cls(digest=digest, bundle=bundle, renderer=renderer, encoder=encoder, native=native)

    def read_whole(self, fields: RoutingFields, keys: ExtraKeys) -> PromptBlocks:
        """The first prompt in one go, without the cache: one of token ids, or one that is to be truncated. ApiError if it is none, or if
        it is longer than the model's length."""
        source = fields.prompt_input()
        if isinstance(source, TextInput) and source.truncation is None:
            self._check_fits(source.prompts[0])
        if isinstance(source, TextInput):
            ids = self.renderer.cut(self.renderer.completion(source.prompts[0], source.add_special_tokens), source)
        else:
            ids = self.renderer.request_prompts(fields)[0]
        digests = hash_blocks(ids, self.bundle.block_size, keys)
        return PromptBlocks(num_tokens=len(ids), block_tokens=self.bundle.block_size, hashes=wire_hashes(digests))

    def _check_fits(self, prompt: str | list[int]) -> None:
        most = self.bundle.max_model_len
        if isinstance(prompt, list) and len(prompt) > most:
            raise invalid("prompt", f"has {len(prompt)} tokens; the model takes {most}")


def _native_encoder(parts: Any, digest: str, renderer: PromptRenderer, encoder: SegmentedEncoder) -> Any:
    words, frame = encoder.words, encoder.frame
    return parts.PromptEncoder(
        digest=digest,
        block_size=renderer.bundle.block_size,
        max_chars=-1 if renderer.max_chars is None else renderer.max_chars,
        too_long=lambda num_chars: renderer.check_length(num_chars, "prompt"),
        encoder=encoder,
        words=words,
        split=None if words is None else KNOWN_SPLITS[words.split],
        frame=None if frame is None else (token_bytes(frame[0]), token_bytes(frame[1])),
    )


class Job:
    """One prompt on its way, in Python."""

    def __init__(
        self, reader: Reader, cache: PromptCache, pieces: list[str], keys: ExtraKeys, frame: tuple[list[int], list[int]]
    ) -> None:
        """`pieces` as `ChatTemplate.pieces` gives them; `frame`: tokens before and after the text."""
        self._reader = reader
        self._cache = cache
        before, after = frame
        self._after = token_bytes(after) if after else b""
        self._steps = [_root(reader, cache, keys, before)]
        num_messages = self._whole_messages(pieces)
        rest = pieces[2 * num_messages :]
        text = "".join(rest)
        self._segments = reader.encoder.segments(text)
        num_steps = len(self._steps)
        self._next = cache.follow(self._steps, self._segments)
        self.missing_chars = len(text)
        """Text still to be tokenised."""
        if len(self._steps) > num_steps:
            self._join_messages(rest, num_steps)
            self.missing_chars -= sum([step.num_chars for step in self._steps[num_steps:]])
        cache.touch(self._steps)
        self._room_chars = MAX_NEW_CHARS
        self._unread_chars = 0

    @property
    def num_steps(self) -> int:
        """Steps over what is known, the root among them."""
        return len(self._steps)

    def _whole_messages(self, pieces: list[str]) -> int:
        """Take the steps over whole messages, as far as they are known; how many these are."""
        taken = 0
        for end, text in _messages(pieces):
            found = self._cache.after(self._steps[-1], text, pieces[end])
            if found is None:
                break
            self._steps.append(found)
            taken = end // 2
        return taken

    def _join_messages(self, pieces: list[str], start: int) -> None:
        """Remember as one what segments from `start` on make up a message: the next time it is found at once."""
        steps, end_chars, num_chars, end = self._steps, 0, 0, start
        for at, text in _messages(pieces):
            if not self._reader.encoder.is_firm(pieces[at]):
                return
            num_chars += len(text)
            begin = end
            while end_chars < num_chars and end < len(steps):
                end_chars += steps[end].num_chars
                end += 1
            if end_chars != num_chars:
                return
            self._cache.join(steps[begin - 1], steps[begin:end], text, pieces[at])

    def advance(self, num_chars: int) -> None:
        """Tokenise segments until `num_chars` are done, at least one."""
        while self._next is not None and num_chars > 0:
            segment = self._next
            if len(segment) > self._room_chars:
                self._unread_chars, self.missing_chars, self._next = self.missing_chars, 0, None
                return
            packed = self._reader.encoder.encode(segment)
            self._next = next(self._segments, None)
            if self._next is None and len(segment) <= MAX_KEPT_CHARS:
                # What opens the answer ends every chat, and goes on as something else in the next: no step is worth keeping for it.
                self._after = packed + self._after
            else:
                self._steps.append(self._cache.extend(self._steps[-1], segment, packed))
            self.missing_chars -= len(segment)
            self._room_chars -= len(segment)
            num_chars -= len(segment)

    def blocks(self) -> PromptBlocks:
        """What was read."""
        last = self._steps[-1].chain
        hashes: list[int] = []
        for step in self._steps:
            hashes += step.hashes
        num_tokens = last.num_tokens + len(self._after) // TOKEN_SIZE_BYTES
        if self._unread_chars:
            num_tokens += round(self._unread_chars / self._chars_per_token())
        elif self._after:
            hashes += last.extend(self._after)[0]
        return PromptBlocks(num_tokens=num_tokens, block_tokens=self._reader.bundle.block_size, hashes=hashes)

    def _chars_per_token(self) -> float:
        num_chars = sum([step.num_chars for step in self._steps])
        return num_chars / self._steps[-1].num_tokens if num_chars else CHARS_PER_TOKEN


def _root(reader: Reader, cache: PromptCache, keys: ExtraKeys, before: list[int]) -> Step:
    root = (reader.digest, keys.adapter, keys.cache_salt, bool(before))
    found = cache.root(root)
    if found is not None:
        return found
    return cache.begin(root, *BlockChain.start(reader.bundle.block_size, keys).extend(token_bytes(before)))


def _messages(pieces: list[str]) -> Iterator[tuple[int, str]]:
    """Where each message ends, as a place in `pieces`, and its text, with what the template writes before it. Short ones go with what
    follows, as segments do. What the template writes after the last is none."""
    text = ""
    for at in range(0, len(pieces) - 2, 2):
        text += pieces[at] + pieces[at + 1]
        if len(text) >= MIN_CHARS:
            yield at + 2, text
            text = ""


def begin_job(reader: Reader, cache: Any, fields: RoutingFields, keys: ExtraKeys) -> AnyJob | None:
    """The job that reads the first prompt of a body, with a PromptCache of the reader's kind. None: only `read_whole` can. ApiError if the
    template refuses it, or if it is certainly too long for the model."""
    source = fields.prompt_input()
    if source.truncation is not None:
        return None
    frame = reader.encoder.frame if source.add_special_tokens else ([], [])
    pieces = _pieces_of(reader.renderer, source)
    if frame is None or pieces is None:
        return None
    if reader.native is not None:
        found: AnyJob = cache.job(reader.native, pieces, keys.adapter, keys.cache_salt, source.add_special_tokens)
        return found
    reader.renderer.check_length(sum(map(len, pieces)), "prompt")
    return Job(reader, cache, pieces, keys, frame)


def _pieces_of(renderer: PromptRenderer, source: ChatInput | TextInput) -> list[str] | None:
    if isinstance(source, TextInput):
        first = source.prompts[0]
        return [first] if isinstance(first, str) else None
    return renderer.pieces(
        source.messages,
        source.tools,
        source.add_generation_prompt,
        source.continue_final_message,
        source.template_kwargs,
    )
