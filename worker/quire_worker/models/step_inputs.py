"""What one step feeds the model.

Shapes: T tokens of the step, all rows one after the other; R rows; S sampled tokens; G KV groups; M blocks in the longest table.
A sampled token is one whose logits are wanted: the last of each row that gets a token, and prompt tokens that are to be scored.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionInputs:
    """Whose keys each query sees. Row r's queries are tokens query_starts[r] to query_starts[r+1]; they are its last ones."""

    block_tables: tuple[Tensor, ...]
    """G times [R, M] int32."""
    query_starts: Tensor
    """[R + 1] int32."""
    seq_lens: Tensor
    """[R] int32: tokens of the row that have keys after this step."""
    max_query_len: int
    max_seq_len: int
    """At least the longest of seq_lens; known on the host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """One step, on the model's device."""

    token_ids: Tensor
    """[T] int32."""
    positions: Tensor
    """[T] int64."""
    slots: tuple[Tensor, ...]
    """G times [T] int64: where each token's key and value go."""
    attention: AttentionInputs
    """For all T queries."""
    sampled_tokens: Tensor | None
    """[S] int64: index of each sampled token. None: every token is one (a step of decoding only)."""
    sampled_attention: AttentionInputs
    """For those S queries alone: the last layer needs no others."""
    num_sampled: int
