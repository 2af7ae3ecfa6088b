"""Tokens that a request's own words rule out: those it does not allow, and the last tokens of its bad words where the rest has come.

Everything a step needs lies on the device, and what depends only on which rows are sampled is put together once for them: in steps of
decoding they stay the same. Must not know where logits come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_kernels.ops import Ops
from quire_worker.execution.prepared_step import SampledRows
from quire_worker.execution.rows import Ints, Rows, upload
from quire_worker.plan import NewRow

_ANY = -2
"""In the table of bad words: whatever stands here."""
_NO_TOKEN = -1
"""In the window: not output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Words:
    """Bad words of B sampled rows: W words in all, the longest of L tokens, U different (row, last token)."""

    index: Tensor
    """[B] int64, places of the rows among the sampled ones."""
    table: Tensor
    """[W, L - 1] int32: the tokens before the last, right-aligned."""
    word_rows: Tensor
    """[W] int64, into the B."""
    pairs: Tensor
    """[W] int64, into the U."""
    pair_index: Tensor
    """[U] int64, places among the sampled rows, and"""
    pair_ids: Tensor
    """the tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """What a step of these sampled rows needs."""

    rows: tuple[int, ...]
    masks: tuple[Tensor, Tensor] | None
    """Places of M rows [M] int64, their bit masks [M, ceil(V / 32)] int32."""
    words: _Words | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _RowWords:
    """Bad words of one request: w words, u different last tokens."""

    words: tuple[tuple[int, ...], ...]
    table: npt.NDArray[np.int32]
    """[w, longest - 1]: the tokens before the last, right-aligned."""
    last_ids: Ints
    """[u]"""
    pairs: Ints
    """[w], into last_ids."""


class Constraints:
    """Of the rows of one runner."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._masks: dict[int, Tensor] = {}
        self._words: dict[int, _RowWords] = {}
        self._last_mask: tuple[tuple[int, ...], Tensor] | None = None
        self._last_words: _RowWords | None = None
        self._batch: _Batch | None = None

    def set_up(self, new: NewRow) -> None:
        """A request enters its row; `forget` was called for the last one. Choices of one request come one after the other."""
        sampling = new.sampling
        if sampling.allowed_token_ids:
            self._masks[new.row] = self._mask_of(sampling.allowed_token_ids)
        if sampling.bad_words:
            if self._last_words is None or self._last_words.words is not sampling.bad_words:
                self._last_words = _row_words(sampling.bad_words)
            self._words[new.row] = self._last_words
        if sampling.allowed_token_ids or sampling.bad_words:
            self._batch = None

    def _mask_of(self, allowed: tuple[int, ...]) -> Tensor:
        if self._last_mask is None or self._last_mask[0] is not allowed:
            bits = np.zeros(-(-self._vocab_size // 32) * 32, np.uint8)
            bits[np.array(allowed, np.int64)] = 1
            mask = upload(np.packbits(bits, bitorder="little").view("<i4"), self._device)
            self._last_mask = (allowed, mask)
        return self._last_mask[1]

    def forget(self, row: int) -> None:
        """Its request has left."""
        mask, words = self._masks.pop(row, None), self._words.pop(row, None)
        if mask is not None or words is not None:
            self._batch = None

    def bind(self, rows: Ints) -> bool:
        """Whether any of these sampled rows has some."""
        if not self._masks and not self._words:
            return False
        return any(row in self._masks or row in self._words for row in rows.tolist())

    def apply(self, logits_SV: Tensor, sampled: SampledRows, rows: Rows, num_prompt: Tensor, ops: Ops) -> None:
        """-inf for what may not come, in place; logits float32, num_prompt [R] int64: tokens of each row's prompt."""
        key = tuple(sampled.rows.tolist())
        if self._batch is None or self._batch.rows != key:
            self._batch = self._make_batch(key)
        if self._batch.masks is not None:
            ops.apply_bitmask(logits_SV, *self._batch.masks)
        words = self._batch.words
        if words is not None:
            matches = _matches(words, sampled, rows, num_prompt)
            added = torch.where(matches, float("-inf"), 0.0)
            values = torch.zeros(words.pair_ids.shape, device=added.device)
            values.scatter_reduce_(0, words.pairs, added, "amin")
            ops.apply_bias(logits_SV, words.pair_index, words.pair_ids, values)

    def _make_batch(self, rows: tuple[int, ...]) -> _Batch:
        masked = [i for i, row in enumerate(rows) if row in self._masks]
        worded = [i for i, row in enumerate(rows) if row in self._words]
        masks = None
        if masked:
            bits = torch.stack([self._masks[rows[i]] for i in masked])
            masks = (upload(np.array(masked, np.int64), self._device), bits)
        words = self._make_words(worded, [self._words[rows[i]] for i in worded]) if worded else None
        return _Batch(rows=rows, masks=masks, words=words)

    def _make_words(self, index: list[int], found: Sequence[_RowWords]) -> _Words:
        width = max(row.table.shape[1] for row in found)
        padded = [np.pad(row.table, ((0, 0), (width - row.table.shape[1], 0)), constant_values=_ANY) for row in found]
        num_words, num_pairs = ([len(array) for array in arrays] for arrays in (padded, [r.last_ids for r in found]))
        starts = np.cumsum([0, *num_pairs[:-1]])
        places = np.array(index, np.int64)

        def sent(array: npt.NDArray[np.generic]) -> Tensor:
            return upload(array, self._device)

        return _Words(
            index=sent(places),
            table=sent(np.concatenate(padded)),
            word_rows=sent(np.repeat(np.arange(len(found)), num_words)),
            pairs=sent(np.concatenate([row.pairs for row in found]) + np.repeat(starts, num_words)),
            pair_index=sent(np.repeat(places, num_pairs)),
            pair_ids=sent(np.concatenate([row.last_ids for row in found])),
        )


def _row_words(words: tuple[tuple[int, ...], ...]) -> _RowWords:
    width = max(map(len, words)) - 1
    table = np.full((len(words), width), _ANY, np.int32)
    for i, word in enumerate(words):
        table[i, width - len(word) + 1 :] = word[:-1]
    last_ids, pairs = np.unique(np.array([word[-1] for word in words], np.int64), return_inverse=True)
    return _RowWords(words=words, table=table, last_ids=last_ids, pairs=pairs.astype(np.int64))


def _matches(words: _Words, sampled: SampledRows, rows: Rows, num_prompt: Tensor) -> Tensor:
    """[W] bool: whether the row's output ends in all of the word but its last token."""
    width = words.table.shape[1]
    on_device = sampled.rows_on_device.index_select(0, words.index)
    places = torch.arange(-width, 0, device=on_device.device) + rows.num_tokens.index_select(0, on_device)[:, None]
    tokens = rows.token_ids[on_device[:, None], places.clamp(min=0)]
    is_output = places >= num_prompt.index_select(0, on_device)[:, None]
    window = torch.where(is_output, tokens, _NO_TOKEN).index_select(0, words.word_rows)
    return ((words.table == window) | (words.table == _ANY)).all(-1)
