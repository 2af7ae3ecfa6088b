"""Tokens that a request's own words rule out: those it does not allow, and the last tokens of its bad words where the rest has come.

Everything a step needs lies on the device, and what depends only on which rows are sampled is put together once for them: in steps of
decoding they stay the same. Must not know where logits come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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


class Constraints:
    """Of the rows of one runner."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._masks: dict[int, Tensor] = {}
        self._words: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._batch: _Batch | None = None

    def set_up(self, new: NewRow) -> None:
        """A request enters its row; `forget` was called for the last one."""
        sampling = new.sampling
        if sampling.allowed_token_ids:
            bits = np.zeros(-(-self._vocab_size // 32) * 32, np.uint8)
            bits[np.array(sampling.allowed_token_ids, np.int64)] = 1
            self._masks[new.row] = upload(np.packbits(bits, bitorder="little").view("<i4"), self._device)
        if sampling.bad_words:
            self._words[new.row] = sampling.bad_words
        if new.row in self._masks or new.row in self._words:
            self._batch = None

    def forget(self, row: int) -> None:
        """Its request has left."""
        if self._masks.pop(row, None) is not None or self._words.pop(row, None) is not None:
            self._words.pop(row, None)
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

    def _make_words(self, index: list[int], found: Sequence[tuple[tuple[int, ...], ...]]) -> _Words:
        words = [(place, word) for place, of_row in enumerate(found) for word in of_row]
        width = max(len(word) for _, word in words) - 1
        table = np.full((len(words), width), _ANY, np.int32)
        pairs: dict[tuple[int, int], int] = {}
        pair_of = []
        for i, (place, word) in enumerate(words):
            table[i, width - len(word) + 1 :] = word[:-1]
            pair_of.append(pairs.setdefault((index[place], word[-1]), len(pairs)))
        pair_index, pair_ids = np.array(list(pairs), np.int64).T.copy()
        return _Words(
            index=upload(np.array(index, np.int64), self._device),
            table=upload(table, self._device),
            word_rows=upload(np.array([place for place, _ in words], np.int64), self._device),
            pairs=upload(np.array(pair_of, np.int64), self._device),
            pair_index=upload(pair_index, self._device),
            pair_ids=upload(pair_ids, self._device),
        )


def _matches(words: _Words, sampled: SampledRows, rows: Rows, num_prompt: Tensor) -> Tensor:
    """[W] bool: whether the row's output ends in all of the word but its last token."""
    width = words.table.shape[1]
    on_device = sampled.rows_on_device.index_select(0, words.index)
    places = torch.arange(-width, 0, device=on_device.device) + rows.num_tokens.index_select(0, on_device)[:, None]
    tokens = rows.token_ids[on_device[:, None], places.clamp(min=0)]
    is_output = places >= num_prompt.index_select(0, on_device)[:, None]
    window = torch.where(is_output, tokens, _NO_TOKEN).index_select(0, words.word_rows)
    return ((words.table == window) | (words.table == _ANY)).all(-1)
