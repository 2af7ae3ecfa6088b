"""From logits to tokens in C++: the draw, and what happens to logits before it. `native/sampling.h` says how.

Contracts are those of quire_kernels.{sampling,penalties,token_bias,logprobs}; tokens are the reference's, except where two sums of
logit and noise, or two sides of a cut, are within a rounding of each other.
"""

from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from quire_kernels.cpu.logprobs import top_logprobs_cpu
from quire_kernels.cpu.native_library import NativeLibrary
from quire_kernels.logprobs import TopLogprobs
from quire_kernels.philox import PURPOSE_SAMPLE
from quire_kernels.sampling import SamplingTensors

_P, _I = c_void_p, c_int64
MAX_TOP_LOGPROBS = 64
"""Above it a sort is faster than insertion."""


class NativeSampling:
    """The ops of one library. One thread at a time may call."""

    def __init__(self, library: NativeLibrary) -> None:
        call = library.function
        self._sample = call(
            "quire_sample", (_P, c_int32, _I, _I, _I, _P, _P, _P, _P, _P, _P, c_int32, _P, _P, _P), None
        )
        self._scratch_bytes = call("quire_sample_scratch_bytes", (_I, _I), _I)
        self._penalties = call("quire_apply_penalties", (_P, _I, _I, _I, _P, _P, _P, _P, _P, _P), None)
        self._count = call("quire_count_tokens", (_P, _I, _I, _P, _P), None)
        self._bias = call("quire_apply_bias", (_P, _I, _I, _I, _P, _P, _P), None)
        self._bitmask = call("quire_apply_bitmask", (_P, _I, _I, _I, _P, _P), None)
        self._logprobs = call("quire_top_logprobs", (_P, c_int32, _I, _I, _I, _P, _I, _P, _P, _P, _P), None)
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def argmax(self, logits_RV: Tensor, broken: Tensor | None = None) -> Tensor:
        """[R] int64: each row's largest logit, the lowest id on ties, NaN passed over. `broken` as in `sample`."""
        return self._draw(logits_RV, (None,) * 6, PURPOSE_SAMPLE, broken)

    def sample(
        self,
        logits_RV: Tensor,
        params: SamplingTensors,
        purpose: int = PURPOSE_SAMPLE,
        broken: Tensor | None = None,
    ) -> Tensor:
        """[R] int64. `broken` [R] bool, if given, is set for rows with NaN or +inf, or without any finite logit."""
        arrays = (params.temperature, params.top_k, params.top_p, params.min_p, params.seeds, params.positions)
        kept = tuple(array.contiguous() for array in arrays)
        return self._draw(logits_RV, tuple(array.data_ptr() for array in kept), purpose, broken)

    def _draw(self, logits_RV: Tensor, params: tuple[int | None, ...], purpose: int, broken: Tensor | None) -> Tensor:
        logits = _readable(logits_RV)
        num_rows, vocab_size = logits.shape
        out = torch.empty(num_rows, dtype=torch.int64)
        if not num_rows:
            return out
        self._sample(
            logits.data_ptr(), logits.dtype == torch.bfloat16, num_rows, vocab_size, logits.stride(0), *params, purpose,
            out.data_ptr(), None if broken is None else broken.data_ptr(), self._room(num_rows, vocab_size),
        )  # fmt: skip
        return out

    def _room(self, num_rows: int, vocab_size: int) -> int:
        size = int(self._scratch_bytes(num_rows, vocab_size))
        if size > self._scratch.numel():
            self._scratch = torch.empty(size + 64, dtype=torch.uint8)
        return -(-self._scratch.data_ptr() // 64) * 64

    def apply_penalties(
        self,
        logits_RV: Tensor,
        slots: Tensor,
        prompt_mask: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
    ) -> None:
        """In place, float32."""
        kept = [t.contiguous() for t in (slots, prompt_mask, output_counts, repetition, frequency, presence)]
        self._penalties(logits_RV.data_ptr(), *_size(logits_RV), *(tensor.data_ptr() for tensor in kept))

    def count_tokens(self, output_counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
        """In place; output_counts contiguous."""
        self._count(
            output_counts.data_ptr(), output_counts.shape[1], slots.numel(), slots.data_ptr(), token_ids.data_ptr()
        )

    def apply_bias(self, logits_RV: Tensor, row_idx: Tensor, ids: Tensor, values: Tensor) -> None:
        """In place, float32."""
        pointers = (row_idx.data_ptr(), ids.data_ptr(), values.data_ptr())
        self._bias(logits_RV.data_ptr(), *_size(logits_RV)[1:], ids.numel(), *pointers)

    def apply_bitmask(self, logits_RV: Tensor, rows: Tensor, bitmask: Tensor) -> None:
        """In place, float32."""
        kept = bitmask.contiguous()
        self._bitmask(logits_RV.data_ptr(), *_size(logits_RV)[1:], rows.numel(), rows.data_ptr(), kept.data_ptr())

    def top_logprobs(self, logits_RV: Tensor, chosen: Tensor, k: int) -> TopLogprobs:
        """See quire_kernels.logprobs."""
        k = min(k, logits_RV.shape[1])
        if k > MAX_TOP_LOGPROBS:
            return top_logprobs_cpu(logits_RV, chosen, k)
        logits, picked = _readable(logits_RV), chosen.contiguous()
        num_rows, vocab_size, stride = _size(logits)
        found = TopLogprobs(
            chosen_logprobs=torch.empty(num_rows),
            chosen_ranks=torch.empty(num_rows, dtype=torch.int64),
            ids=torch.empty(num_rows, k, dtype=torch.int64),
            logprobs=torch.empty(num_rows, k),
        )
        self._logprobs(
            logits.data_ptr(), logits.dtype == torch.bfloat16, num_rows, vocab_size, stride, picked.data_ptr(), k,
            found.chosen_logprobs.data_ptr(), found.chosen_ranks.data_ptr(), found.ids.data_ptr(), found.logprobs.data_ptr(),
        )  # fmt: skip
        return found


def _readable(logits_RV: Tensor) -> Tensor:
    """float32 or bfloat16, rows contiguous."""
    logits = logits_RV if logits_RV.dtype in (torch.float32, torch.bfloat16) else logits_RV.float()
    return logits if logits.stride(1) == 1 else logits.contiguous()


def _size(logits_RV: Tensor) -> tuple[int, int, int]:
    """Rows, vocabulary, stride."""
    assert logits_RV.stride(1) == 1, "a row of logits is contiguous"
    return logits_RV.shape[0], logits_RV.shape[1], logits_RV.stride(0)
