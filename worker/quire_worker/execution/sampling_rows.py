"""Each row's sampling parameters, resident on the device, and what the host must know of them to skip work.

Parameters are written once, when a request enters a row: on a CPU in place, else with the step's other changes. Tables as wide as the
vocabulary (for penalties) exist only for rows that need them. Must not know logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire_kernels.sampling import SamplingTensors
from quire_worker.execution.constraints import Constraints
from quire_worker.execution.prepared_step import SampledRows
from quire_worker.execution.prompt_scores import PromptScorer
from quire_worker.execution.rows import Ints, Rows, upload
from quire_worker.execution.staging import Array
from quire_worker.plan import NewRow
from quire_worker.request import MAX_LOGPROB_TOKEN_IDS, SamplingParams

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True, slots=True)
class HostParams:
    """The tensors of SamplingRows as numpy arrays of the same memory."""

    floats: npt.NDArray[np.float32]
    integers: Ints
    top_k: npt.NDArray[np.int32]


class SamplingRows:
    """Parameters of R rows over a vocabulary of V tokens."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device, *, on_host: bool) -> None:
        """on_host: they are written in place, as numpy arrays; else by `accept`."""
        self.device = device
        self.vocab_size = vocab_size
        self.floats = torch.zeros(len(_FLOATS), num_rows, device=device)
        """In the order temperature, top_p, min_p, repetition, frequency, presence."""
        self.top_k = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.integers = torch.zeros(3, num_rows, dtype=torch.int64, device=device)
        """In the order seed, prompt tokens, slot in the tables of penalties (-1: none)."""
        self.penalties = PenaltyTables(num_rows, vocab_size, device)
        self.biases: dict[int, tuple[Tensor, Tensor]] = {}
        """By row: token ids and what is added to their logits."""
        self.ending_ids: dict[int, Tensor] = {}
        """By row, of those with min_tokens."""
        self.constraints = Constraints(vocab_size, device)
        self.scorer = PromptScorer()
        self.named_ids: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        """By row, of those that name the tokens of their log-probabilities: which, and the same [MAX_LOGPROB_TOKEN_IDS] on the device."""
        self.arrays = HostParams(self.floats.numpy(), self.integers.numpy(), self.top_k.numpy()) if on_host else None
        """None where the parameters are not in the host's memory."""
        self.host_is_random = np.zeros(num_rows, np.bool_)
        self.host_num_logprobs: Ints = np.full(num_rows, -1)
        """-1: none asked for."""
        self.host_free_from: Ints = np.zeros(num_rows, np.int64)
        """Tokens a row must have before it may end: prompt + min_tokens."""
        self.host_is_plain = np.zeros(num_rows, np.bool_)
        """Greedy, and nothing asked for but the token, apart from host_free_from."""

    def set_up(self, new: NewRow) -> None:
        """A request enters its row."""
        row, sampling = new.row, new.sampling
        self.forget(row)
        self.host_is_random[row] = sampling.temperature > 0
        self.host_is_plain[row] = _is_plain(sampling)
        self.host_num_logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        if sampling.logprobs is not None and sampling.logprob_token_ids:
            named = np.zeros(MAX_LOGPROB_TOKEN_IDS, np.int64)
            named[: len(sampling.logprob_token_ids)] = sampling.logprob_token_ids
            self.host_num_logprobs[row] = 0
            self.named_ids[row] = (sampling.logprob_token_ids, upload(named, self.device))
        self.constraints.set_up(new)
        self.scorer.set_up(new)
        if sampling.min_tokens:
            self.host_free_from[row] = new.num_prompt_tokens + sampling.min_tokens
            ids = np.unique(np.array(sampling.ending_token_ids, np.int64))
            # A checkpoint may name an end token that its vocabulary lacks; it cannot come anyway.
            self.ending_ids[row] = upload(ids[ids < self.vocab_size], self.device)
        if sampling.logit_bias:
            biased, added = zip(*sampling.logit_bias, strict=True)
            self.biases[row] = (
                upload(np.array(biased, np.int64), self.device),
                upload(np.array(added, np.float32), self.device),
            )
        if _has_penalties(sampling):
            self.penalties.set_up(row, new.token_ids, new.num_prompt_tokens)
        if self.arrays is not None:
            self.arrays.floats[:, row] = _floats_of(sampling)
            self.arrays.integers[:, row] = self._integers_of(new)
            self.arrays.top_k[row] = sampling.top_k

    def changes(self, new_rows: Sequence[NewRow]) -> list[Array]:
        """What `accept` writes for rows that are set up, to be sent to the device with other changes."""
        return [
            np.array([new.row for new in new_rows], np.int64),
            np.array([_floats_of(new.sampling) for new in new_rows], np.float32).T,
            np.array([self._integers_of(new) for new in new_rows], np.int64).T,
            np.array([new.sampling.top_k for new in new_rows], np.int32),
        ]

    def accept(self, changes: Sequence[Tensor]) -> None:
        """What `changes` gave, on the device."""
        rows, floats, integers, top_k = changes
        self.floats.index_copy_(1, rows, floats)
        self.integers.index_copy_(1, rows, integers)
        self.top_k.index_copy_(0, rows, top_k)

    def _integers_of(self, new: NewRow) -> tuple[int, int, int]:
        seed = new.sampling.seed
        # The seed's 64 bits, in the signed integers torch has.
        seed = seed - 2**64 if seed >= 2**63 else seed
        return seed, new.num_prompt_tokens, int(self.penalties.host_slots[new.row])

    def penalty_slots_of(self, sampled: SampledRows) -> Tensor:
        """Their places in the tables, on the device; -1: no penalties."""
        if self.arrays is not None:
            return torch.from_numpy(self.penalties.host_slots[sampled.rows])
        return self.integers[2].index_select(0, sampled.rows_on_device)

    def tensors_of(self, sampled: SampledRows, rows: Rows) -> SamplingTensors:
        """What the draw of these rows' next tokens depends on, besides their logits."""
        if self.arrays is not None:
            return _tensors_on_host(self.arrays, sampled.rows, rows.host_num_tokens)
        on_device = sampled.rows_on_device
        temperature, top_p, min_p = self.floats[:3].index_select(1, on_device).unbind()
        seeds, num_prompt = self.integers[:2].index_select(1, on_device).unbind()
        return SamplingTensors(
            temperature=temperature,
            top_k=self.top_k.index_select(0, on_device),
            top_p=top_p,
            min_p=min_p,
            seeds=seeds,
            positions=rows.num_tokens.index_select(0, on_device) - num_prompt,
        )

    def are_plain(self, rows: Ints, num_tokens: Ints) -> bool:
        """Whether all of these rows, which have so many tokens now, get just the largest of their raw logits, masks apart."""
        return bool(self.host_is_plain[rows].all() and (num_tokens >= self.host_free_from[rows]).all())

    def forget(self, row: int) -> None:
        """The row's request has left."""
        self.biases.pop(row, None)
        self.ending_ids.pop(row, None)
        self.named_ids.pop(row, None)
        self.constraints.forget(row)
        self.scorer.forget(row)
        self.host_free_from[row] = 0
        self.penalties.forget(row)


def _tensors_on_host(params: HostParams, rows: Ints, num_tokens: Ints) -> SamplingTensors:
    """By numpy: a gather in torch costs several times as much."""
    temperature, top_p, min_p = torch.from_numpy(params.floats[:3, rows])
    seeds, num_prompt = params.integers[:2, rows]
    return SamplingTensors(
        temperature=temperature,
        top_k=torch.from_numpy(params.top_k[rows]),
        top_p=top_p,
        min_p=min_p,
        seeds=torch.from_numpy(seeds),
        positions=torch.from_numpy(num_tokens[rows] - num_prompt),
    )


def _has_penalties(sampling: SamplingParams) -> bool:
    return (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0)


def _is_plain(sampling: SamplingParams) -> bool:
    asks_for_more = sampling.logprobs is not None or sampling.logit_bias or _has_penalties(sampling)
    return sampling.temperature <= 0 and not (asks_for_more or sampling.allowed_token_ids or sampling.bad_words)


def _floats_of(sampling: SamplingParams) -> list[float]:
    return [getattr(sampling, name) for name in _FLOATS]


class PenaltyTables:
    """Which tokens a penalised row has seen. Tables grow with the number of such rows; see quire_kernels.penalties."""

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self._free: list[int] = []
        self.prompt_mask = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self.output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self.host_slots: Ints = np.full(num_rows, -1)
        """By row; -1: no penalties."""

    def set_up(self, row: int, token_ids: list[int], num_prompt: int) -> None:
        """The tokens a request brings: a preempted one already has output."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.host_slots[row] = slot
        tokens = upload(np.fromiter(token_ids, np.int64, len(token_ids)), self._device)
        self.prompt_mask[slot].zero_().index_fill_(0, tokens[:num_prompt], True)
        # Not bincount: on a GPU it waits for the largest id.
        outputs = tokens[num_prompt:]
        ones = torch.ones(outputs.shape, dtype=torch.int32, device=self._device)
        self.output_counts[slot].zero_().scatter_add_(0, outputs, ones)

    def forget(self, row: int) -> None:
        """Its slot is free again."""
        slot = int(self.host_slots[row])
        if slot >= 0:
            self._free.append(slot)
            self.host_slots[row] = -1

    def _grow(self) -> None:
        old, new = self.prompt_mask.shape[0], max(4, 2 * self.prompt_mask.shape[0])
        extra = (new - old, self._vocab_size)
        self.prompt_mask = torch.cat((self.prompt_mask, self.prompt_mask.new_zeros(extra)))
        self.output_counts = torch.cat((self.output_counts, self.output_counts.new_zeros(extra)))
        self._free = list(range(new - 1, old - 1, -1))
