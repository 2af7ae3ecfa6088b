# mypy: disable-error-code="no-untyped-def"
"""Triton kernel of append_tokens. See quire_kernels.append_tokens for the table.

Grid (tiles of N,): a lane a token.
"""

import triton
import triton.language as tl
from torch import Tensor

TOKENS_PER_PROGRAM = 128


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["row_ids", "sampled"])
def append_tokens_kernel(row_ids, sampled, token_ids, num_tokens, count, stride_s, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ids + i, mask=i < count, other=-1)
    is_row = row >= 0
    place = tl.load(num_tokens + row, mask=is_row, other=0)
    token = tl.load(sampled + i, mask=is_row, other=0)
    tl.store(token_ids + row * stride_s + place, token.to(tl.int32), mask=is_row)
    tl.store(num_tokens + row, place + 1, mask=is_row)


def append_tokens_triton(row_ids: Tensor, sampled: Tensor, token_ids: Tensor, num_tokens: Tensor) -> None:
    """See quire_kernels.append_tokens."""
    assert row_ids.is_contiguous() and sampled.is_contiguous() and num_tokens.is_contiguous()
    assert token_ids.stride(1) == 1
    count = row_ids.shape[0]
    if count:
        append_tokens_kernel[(triton.cdiv(count, TOKENS_PER_PROGRAM),)](
            row_ids, sampled, token_ids, num_tokens, count, token_ids.stride(0), BLOCK=TOKENS_PER_PROGRAM
        )
