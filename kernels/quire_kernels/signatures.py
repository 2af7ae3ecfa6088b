"""What the operations take and give, as types, where a plain callable's would not say enough. Their tables are in the modules they name."""

from typing import Protocol, overload

import torch
from torch import Tensor

from quire_kernels.prepare_inputs import RowState, StepTensors
from quire_kernels.rotate_and_store import CacheTarget
from quire_kernels.sampling import SamplingTensors


class PagedAttention(Protocol):
    """See quire_kernels.paged_attention."""

    def __call__(
        self,
        q_THD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        seq_lens: Tensor,
        *,
        scale: float,
        window: int | None,
        max_query_len: int,
        max_seq_len: int,
        plan: object = None,
        out: Tensor | None = None,
    ) -> Tensor: ...


class PagedAttentionFp8(Protocol):
    """See quire_kernels.paged_attention."""

    def __call__(
        self,
        q_THD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        seq_lens: Tensor,
        *,
        kv_scales: Tensor,
        scale: float,
        window: int | None,
        max_query_len: int,
        max_seq_len: int,
        plan: object = None,
        out: Tensor | None = None,
    ) -> Tensor: ...


class PlanAttention(Protocol):
    """See quire_kernels.paged_attention."""

    def __call__(
        self, k_cache: Tensor, block_tables: Tensor, query_starts: Tensor, seq_lens: Tensor, *, window: int | None
    ) -> object: ...


class RmsNorm(Protocol):
    """See quire_kernels.rms_norm."""

    @overload
    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
    @overload
    def __call__(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...


class RotateAndStore(Protocol):
    """See quire_kernels.rotate_and_store."""

    def __call__(
        self,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        target: CacheTarget,
        *,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor: ...


class PrepareInputs(Protocol):
    """See quire_kernels.prepare_inputs."""

    def __call__(
        self, row_ids: Tensor, query_starts: Tensor, state: RowState, *, num_tokens: int, num_blocks: int
    ) -> StepTensors: ...


class QuantizeFp8(Protocol):
    """See quire_kernels.quantize_fp8."""

    def __call__(self, x_TE: Tensor, group: int | None = None, /) -> tuple[Tensor, Tensor]: ...


class RmsNormFp8(Protocol):
    """See quire_kernels.quantize_fp8."""

    def __call__(
        self, x_TE: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, group: int | None = None
    ) -> tuple[Tensor, Tensor]: ...


class Linear(Protocol):
    """See quire_kernels.linear."""

    def __call__(self, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, /) -> Tensor: ...


class MatmulFp8(Protocol):
    """See quire_kernels.matmul_fp8."""

    def __call__(
        self, x_TK: Tensor, x_scales: Tensor, weight_NK: Tensor, w_scales: Tensor, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor: ...


class Sample(Protocol):
    """See quire_kernels.sampling."""

    def __call__(
        self, logits_RV: Tensor, params: SamplingTensors, purpose: int = 0, broken: Tensor | None = None
    ) -> Tensor: ...


class Argmax(Protocol):
    """See quire_kernels.sampling."""

    def __call__(self, logits_RV: Tensor, broken: Tensor | None = None) -> Tensor: ...
