"""Computes batches of inputs: encoders, cross-encoders and decoders, each an `embedding.Embedder`.

An input is computed whole in one batch, and nothing of it stays behind. Must not know requests or queues.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_worker.dormant import Dormant
from quire_worker.embedding import EmbedInput
from quire_worker.execution.device import sticky_errors
from quire_worker.execution.dormancy import DeviceDormancy, HostDormancy
from quire_worker.execution.embed_batch import Batch, Ints, finished, pack_inputs, token_types
from quire_worker.execution.kv_memory import KVShape
from quire_worker.models.decoder import Decoder
from quire_worker.models.embedding_config import EmbeddingConfig
from quire_worker.models.encoder import Encoder, EncoderInputs
from quire_worker.models.encoder_config import EncoderConfig
from quire_worker.models.pooling import pool
from quire_worker.models.score_head import PairScorer
from quire_worker.models.step_inputs import AttentionInputs, StepInputs


class EncoderEmbedder:
    """An encoder, and a head that scores or pooling behind it."""

    def __init__(
        self,
        model: Encoder,
        config: EncoderConfig,
        device: torch.device,
        *,
        pooling: EmbeddingConfig,
        scorer: PairScorer | None,
    ) -> None:
        """With a `scorer` the pooling is not looked at."""
        self._dormancy: Dormant = HostDormancy(None)
        if device.type != "cpu":
            self._dormancy = DeviceDormancy(model=(model, scorer), kv_cache=None, steps=None)
        self._model = model
        self._padding_id = config.padding_id
        self._has_types = config.num_token_types > 1
        self._device = device
        self._pooling = pooling
        self._scorer = scorer

    @torch.inference_mode()
    def embed(self, inputs: Sequence[EmbedInput]) -> list[bytes | None]:
        """See embedding.Embedder."""
        batch = pack_inputs(inputs)
        with sticky_errors():
            hidden = self._model(self._inputs(inputs, batch))
            if self._scorer is None:
                vectors = pool(hidden, batch.runs, self._pooling.pooling)
                return finished(vectors, inputs, batch, normalises=self._pooling.normalises)
            firsts = hidden[self._to_device(batch.starts)]
            return finished(self._scorer(firsts), inputs, batch, normalises=False)

    def _inputs(self, inputs: Sequence[EmbedInput], batch: Batch) -> EncoderInputs:
        types = token_types(inputs, batch) if self._has_types else None
        return EncoderInputs(
            token_ids=self._to_device(batch.token_ids),
            positions=self._to_device(self._positions(batch)),
            token_types=None if types is None else self._to_device(types),
            runs=batch.runs,
        )

    def _positions(self, batch: Batch) -> Ints:
        """RoBERTa's begin behind the padding token's id, which is the position of padding tokens; they do not count."""
        padding_id = self._padding_id
        if padding_id is None:
            return batch.positions
        is_padding = batch.token_ids == padding_id
        if not is_padding.any():
            return batch.positions + (padding_id + 1)
        counts = (~is_padding).cumsum()
        before = (counts - ~is_padding)[batch.starts]
        positions: Ints = np.where(is_padding, 0, counts - np.repeat(before, batch.lengths)) + padding_id
        return positions

    def _to_device(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def fall_asleep(self) -> Iterator[int]:
        """See dormant.Dormant."""
        return self._dormancy.fall_asleep()

    def wake(self) -> Iterator[int]:
        """See dormant.Dormant."""
        return self._dormancy.wake()

    def close(self) -> None:
        """Let go of the device's memory."""
        del self._model


class DecoderEmbedder:
    """A decoder without its head. Its KV cache is scratch memory for one batch.

    block 0 unused | group 0: blocks of the batch's first input, of its second, ... | group 1: the same | ...
    """

    def __init__(
        self, model: Decoder, kv_cache: Tensor, shape: KVShape, device: torch.device, pooling: EmbeddingConfig
    ) -> None:
        """The model has its weights and this cache."""
        self._dormancy: Dormant = HostDormancy(kv_cache)
        if device.type != "cpu":
            self._dormancy = DeviceDormancy(model=model, kv_cache=kv_cache, steps=None)
        self._model = model
        self._kv_cache = kv_cache
        self._shape = shape
        self._device = device
        self._pooling = pooling

    @torch.inference_mode()
    def embed(self, inputs: Sequence[EmbedInput]) -> list[bytes | None]:
        """See embedding.Embedder."""
        batch = pack_inputs(inputs)
        with sticky_errors():
            hidden = self._model(self._inputs(batch))
            assert hidden is not None
            if self._pooling.pooling == "mean":
                hidden = pool(hidden, batch.runs, "mean")
            return finished(hidden.float(), inputs, batch, normalises=self._pooling.normalises)

    def _inputs(self, batch: Batch) -> StepInputs:
        block_size, num_groups = self._shape.block_size, self._shape.num_groups
        counts = -(-batch.lengths // block_size)
        num_blocks = int(counts.sum())
        # Attention on a CPU multiplies hidden slots by zero, and what an earlier batch left there may not be finite.
        self._kv_cache[: 1 + num_groups * num_blocks].zero_()
        firsts = [1 + group * num_blocks + counts.cumsum() - counts for group in range(num_groups)]
        tables = tuple(self._tables(first, counts) for first in firsts)
        attention = self._attention(
            tables, np.append(batch.starts, len(batch.token_ids)), batch, int(batch.lengths[-1])
        )
        slots = [np.repeat(first * block_size, batch.lengths) + batch.positions for first in firsts]
        picked = self._picked(batch)
        return StepInputs(
            token_ids=self._to_device(batch.token_ids.astype(np.int32)),
            positions=self._to_device(batch.positions),
            slots=tuple(self._to_device(group) for group in slots),
            attention=attention,
            sampled_tokens=None if picked is None else self._to_device(picked),
            sampled_attention=attention
            if picked is None
            else self._attention(tables, np.arange(len(batch.lengths) + 1), batch, 1),
            num_sampled=len(batch.token_ids) if picked is None else len(picked),
        )

    def _picked(self, batch: Batch) -> Ints | None:
        """The tokens whose last layer is needed; None: all."""
        match self._pooling.pooling:
            case "last":
                return batch.starts + batch.lengths - 1
            case "mean":
                return None
            case "cls":
                raise AssertionError("a decoder's first token has seen nothing: refused when the model is built")

    def _attention(
        self, tables: tuple[Tensor, ...], query_starts: Ints, batch: Batch, max_query_len: int
    ) -> AttentionInputs:
        return AttentionInputs(
            block_tables=tables,
            query_starts=self._to_device(query_starts.astype(np.int32)),
            seq_lens=self._to_device(batch.lengths.astype(np.int32)),
            max_query_len=max_query_len,
            max_seq_len=int(batch.lengths[-1]),
        )

    def _tables(self, firsts: Ints, counts: Ints) -> Tensor:
        columns = np.arange(counts.max())
        table = np.where(columns < counts[:, None], firsts[:, None] + columns, 0)
        return self._to_device(table.astype(np.int32))

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def fall_asleep(self) -> Iterator[int]:
        """See dormant.Dormant."""
        return self._dormancy.fall_asleep()

    def wake(self) -> Iterator[int]:
        """See dormant.Dormant."""
        return self._dormancy.wake()

    def close(self) -> None:
        """Let go of the device's memory."""
        del self._model, self._kv_cache
