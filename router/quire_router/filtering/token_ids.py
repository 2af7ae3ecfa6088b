"""Prompts that come as token ids, for filters: what they say to each model that may get them, and the ids of a text in their place.

Ids say what a tokenizer makes of them. Workers tell theirs in their prompt bundles; ids go to no model whose tokenizer is not known. It
must not know what filters look for.
"""

from collections.abc import Sequence

import msgspec

from quire_contract.openai.errors import invalid
from quire_contract.openai.model_checks import check_token_ids
from quire_contract.prompt import PromptRenderer
from quire_router.endpoint_pool import EndpointPool
from quire_router.prompts import PromptReader

MAX_TOKENIZERS = 4
"""Of all models that may answer one call: ids are read with each of them."""


class TokenText:
    """One tokenizer's way to read ids. Safe to use from several threads."""

    __slots__ = ("_renderer",)

    def __init__(self, renderer: PromptRenderer) -> None:
        self._renderer = renderer

    def text(self, ids: list[int], place: str) -> str:
        """What the ids say, special tokens by their names. ApiError 400, as the worker's, for ids that are none and for too many."""
        bundle = self._renderer.bundle
        if len(ids) > bundle.max_model_len:
            raise invalid(place, f"has {len(ids)} tokens; the model takes {bundle.max_model_len}")
        check_token_ids(ids, bundle.vocab_size, place)
        # Of a batch, since that releases the interpreter's lock.
        return str(self._renderer.tokenizer.decode_batch([ids], skip_special_tokens=False)[0])

    def ids(self, text: str) -> list[int]:
        """The ids of a text that says what its special tokens are."""
        ids: list[int] = self._renderer.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids


class Readable(msgspec.Struct, frozen=True, kw_only=True):
    """Who can read the ids of a call."""

    targets: tuple[str, ...]
    """The models among the call's of which every worker's tokenizer is known."""
    tokens: tuple[TokenText, ...]
    """One for each tokenizer of theirs."""


class TokenReaders:
    """Knows the tokenizers of the models that are served now. One for the process."""

    def __init__(self, pool: EndpointPool, reader: PromptReader) -> None:
        self._pool = pool
        self._reader = reader

    def of(self, targets: Sequence[str]) -> Readable:
        """Of a call to these models, as many as have MAX_TOKENIZERS in all."""
        chosen: list[str] = []
        known: dict[bytes, PromptRenderer] = {}
        for target in targets:
            found = self._of_model(target)
            together = {**known, **found}
            if found and len(together) <= MAX_TOKENIZERS:
                chosen.append(target)
                known = together
        return Readable(targets=tuple(chosen), tokens=tuple(map(TokenText, known.values())))

    def _of_model(self, model: str) -> dict[bytes, PromptRenderer]:
        """By their tokenizer.json; none if a worker's is not known."""
        digests = {endpoint.digest for endpoint in self._pool.serving(model) or () if endpoint.is_usable}
        found: dict[bytes, PromptRenderer] = {}
        for digest in digests:
            renderer = None if digest is None else self._reader.renderer(digest)
            if renderer is None:
                return {}
            found[renderer.bundle.tokenizer_json] = renderer
        return found
