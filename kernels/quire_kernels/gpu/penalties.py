# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of apply_penalties and count_tokens. See quire_kernels.penalties for the tables.

Grids: penalties (R, tiles of V), one program a tile of a row; counts (tiles of R,).
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.launch_configs import row_config


# Rows of one gathered table: see gpu/sampling.py.
@triton.jit(do_not_specialize_on_alignment=["slots", "repetition", "frequency", "presence"])
def penalties_kernel(
    logits,
    slots,
    prompt_mask,
    output_counts,
    repetition,
    frequency,
    presence,
    logits_stride_r,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = i < vocab_size
        value = tl.load(logits + row * logits_stride_r + i, mask=inside, other=0.0)
        counts = tl.load(output_counts + slot * vocab_size + i, mask=inside, other=0)
        in_prompt = tl.load(prompt_mask + slot * vocab_size + i, mask=inside, other=0) != 0
        factor = tl.load(repetition + row)
        penalised = tl.where(value > 0, value / factor, value * factor)
        value = tl.where(in_prompt | (counts > 0), penalised, value)
        value -= tl.load(frequency + row) * counts.to(tl.float32)
        value -= tl.where(counts > 0, tl.load(presence + row), 0.0)
        tl.store(logits + row * logits_stride_r + i, value, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def count_tokens_kernel(output_counts, slots, token_ids, num_rows, vocab_size, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + i, mask=i < num_rows, other=-1)
    token = tl.load(token_ids + i, mask=i < num_rows, other=-1)
    tl.atomic_add(output_counts + slot * vocab_size + token, 1, mask=(slot >= 0) & (token >= 0))


def apply_penalties_triton(
    logits_RV: Tensor,
    slots: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """See quire_kernels.penalties."""
    num_rows, vocab_size = logits_RV.shape
    assert logits_RV.stride(1) == 1 and prompt_mask.is_contiguous() and output_counts.is_contiguous()
    if num_rows == 0:
        return
    config = row_config("penalties")
    penalties_kernel[(num_rows, triton.cdiv(vocab_size, config.block))](
        logits_RV,
        slots,
        prompt_mask,
        output_counts,
        # Parameters may be columns of a table; the kernel reads them as vectors.
        repetition.contiguous(),
        frequency.contiguous(),
        presence.contiguous(),
        logits_RV.stride(0),
        vocab_size,
        BLOCK=config.block,
        num_warps=config.num_warps,
    )


def count_tokens_triton(output_counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """See quire_kernels.penalties."""
    num_rows = slots.shape[0]
    if num_rows == 0:
        return
    config = row_config("scatter")
    count_tokens_kernel[(triton.cdiv(num_rows, config.block),)](
        output_counts,
        slots,
        token_ids,
        num_rows,
        output_counts.shape[1],
        BLOCK=config.block,
        num_warps=config.num_warps,
    )
