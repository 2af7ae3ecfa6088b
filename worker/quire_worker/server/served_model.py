"""The model as the API process knows it: names, limits, prompts in, text out. No weights.

Made once, when the engine has said what it loaded.
"""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from quire_contract.openai.errors import model_not_found
from quire_contract.openai.requests import ChatCompletionRequest, GenerationRequest
from quire_contract.prompt import PromptRenderer, TokenStream
from quire_contract.prompt_bundle import PromptBundle, digest_of
from quire_contract.prompt_input import ChatInput, HasPrompt, PromptInput
from quire_worker.embedding import EmbeddingInfo
from quire_worker.engine.messages import Ready
from quire_worker.server import errors
from quire_worker.server.parsing.dialect import PLAIN, TAIL_TOKENS, Dialect, Reading
from quire_worker.server.sampling import SamplingDefaults
from quire_worker.server.text_encoder import TextEncoder

T = TypeVar("T")
_INLINE_CHARS = 2048
"""Shorter prompts are tokenised on the event loop: handing them to a thread costs more."""
_INLINE_TOKENS = 4096
"""Fewer ids become text on the event loop."""


class ServedModel:
    """Facts and text tools of the one model that this worker serves."""

    def __init__(
        self, renderer: PromptRenderer, bundle: PromptBundle, ready: Ready, created: int, dialect: Dialect = PLAIN
    ) -> None:
        """`bundle` is the renderer's, completed with what the engine said; `created` in Unix seconds."""
        self.text = renderer
        self.dialect = dialect
        self.names = bundle.served_model_names
        self.max_model_len = bundle.max_model_len
        self.vocab_size = bundle.vocab_size
        self.eos_token_ids = tuple(bundle.eos_token_ids)
        self.defaults = SamplingDefaults.of(bundle.default_sampling)
        self.ready = ready
        self.created = created
        self.embedding = ready.info.embedding
        """What it makes instead of text; None: it generates."""
        self.encoder = TextEncoder(renderer.tokenizer, bundle.vocab_size, bundle.max_model_len)
        self.bundle_bytes = bundle.to_bytes()
        self.bundle_digest = digest_of(self.bundle_bytes)
        self.text_digest = bundle.replace(block_size=0, max_model_len=0, served_model_names=[], scheme="").digest()
        """The same for workers that make the same of texts and tokens, whatever their memory and names."""

    def check_name(self, name: str | None) -> str:
        """The name to answer with. ApiError 404 for one that is not served; None is the first."""
        if name is not None and name not in self.names:
            raise model_not_found(name, self.names)
        return name or self.names[0]

    def check_generates(self, path: str) -> None:
        """ApiError 400 for a model that makes no text."""
        if self.embedding is not None:
            raise errors.makes_no_text(self.names[0], self.embedding.task, path)

    def check_embeds(self, path: str) -> EmbeddingInfo:
        """What the model makes of a text. ApiError 400 for one that generates."""
        if self.embedding is None:
            raise errors.makes_no_embeddings(self.names[0], path)
        return self.embedding

    def new_stream(
        self, skip_special_tokens: bool, shown_token_ids: Collection[int], prompt_ids: Sequence[int]
    ) -> TokenStream:
        """Turns one choice's tokens into text that goes on where the prompt ends."""
        return self.text.stream(
            skip_special_tokens=skip_special_tokens, prompt_ids=prompt_ids, shown_token_ids=shown_token_ids
        )

    def reading(
        self, body: GenerationRequest, prompt: Sequence[int], content_grammar: str | None = None
    ) -> Reading | None:
        """How the messages of a chat with this prompt are read; None where all text is content. ApiError 400, see `Dialect`."""
        if not isinstance(body, ChatCompletionRequest):
            return None
        may_be_open = self.dialect.tags is not None
        tail = self.text.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False) if may_be_open else ""
        return self.dialect.reading(body, tail, content_grammar=content_grammar)


class Tokeniser:
    """Prompts to token ids, long ones in threads, so that the event loop goes on; tokenising releases the interpreter lock.

    At most `max_waiting` long prompts wait.
    """

    def __init__(self, renderer: PromptRenderer, threads: concurrent.futures.Executor, *, max_waiting: int) -> None:
        self._renderer = renderer
        self._threads = threads
        self._max_waiting = max_waiting
        self._num_waiting = 0

    async def prompts(self, request: HasPrompt) -> list[list[int]]:
        """One list of ids for each prompt. ApiError 400 for what cannot be a prompt of this model, 429 if too many wait."""
        if is_short(request.prompt_input()):
            return self._renderer.request_prompts(request)
        return await self.in_thread(self._renderer.request_prompts, request)

    async def bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """How the words may be spelt in tokens. ApiError 429 if too many wait."""
        if sum(map(len, words)) < _INLINE_CHARS // 8:
            return tuple(self._renderer.word_tokens(words)) if words else ()
        return tuple(await self.in_thread(self._renderer.word_tokens, words))

    async def over_tokens(self, num_tokens: int, work: Callable[[], T]) -> T:
        """`work`, which goes over so many tokens. ApiError 429 if too many wait."""
        return work() if num_tokens < _INLINE_TOKENS else await self.in_thread(work)

    async def text(self, token_ids: Sequence[int]) -> str:
        """The ids as text, special tokens included. ApiError 429 if too many wait."""
        decode = functools.partial(self._renderer.decode, token_ids, skip_special_tokens=False)
        return decode() if len(token_ids) < _INLINE_TOKENS else await self.in_thread(decode)

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """What `work` returns, in one of the threads. ApiError 429 if too many wait."""
        if self._num_waiting >= self._max_waiting:
            raise errors.tokenising_full()
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        finally:
            self._num_waiting -= 1


def is_short(source: PromptInput) -> bool:
    """Whether all that a prompt is made of holds few characters and values; lists of token ids count nothing, they are the prompt.

    Looks at everything that a template may print, tool calls and template arguments included, but at no more than decides."""
    if isinstance(source, ChatInput):
        todo: list[Any] = [source.messages, source.tools, source.template_kwargs]
    else:
        todo = [prompt for prompt in source.prompts if isinstance(prompt, str)]
    room = _INLINE_CHARS
    while todo and room >= 0:
        value = todo.pop()
        room -= len(value) if isinstance(value, str | list | Mapping) else 1
        if room >= 0 and not isinstance(value, str):
            todo += _parts(value)
    return room >= 0


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
