"""What scheduler and runner share: the plan of a step, its result, and the protocol between them.

The scheduler knows requests, blocks and policy; the runner knows tensors. They meet only here. A plan holds deltas: a
request's data once (`NewRow`), then a row, a token count and new block ids. It never holds positions, slots or
lengths: the runner derives those from its own rows, because only it knows how many tokens a step in flight commits.

Life of a row. `StepPlan.freed_rows` are forgotten first, then `copies` are made, then `new_rows` are set up (a row may be
freed and set up again in one plan), then `num_tokens[i]` tokens of row `rows[i]` are computed. A row whose computed tokens then equal
its known tokens is sampled, and the sampled token is appended to the row by the runner itself; the scheduler hears of it in the
`StepResult`, one or more steps later. Runners carry out plans in the order of launch.

After a plan raised, nobody knows which of its deltas were carried out: the next plan frees every row, so freeing an empty row is legal
and changes nothing. The KV of blocks that no failed plan was to write stays valid.
"""

from typing import Protocol

import msgspec

from quire_worker.embedding import EmbeddingInfo
from quire_worker.request import PromptLogprobs, SamplingParams, TokenLogprobs


class NewRow(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A request that enters (or re-enters, after preemption) the batch at `row`."""

    row: int
    """0 <= row < max_num_seqs."""
    request_id: str
    """For logs and errors only."""
    token_ids: list[int]
    """Prompt, then the output tokens already committed (a preempted or resumed request has some)."""
    num_prompt_tokens: int
    """token_ids[:num_prompt_tokens] is the prompt; the first sampled token has output position len(token_ids) - num_prompt_tokens."""
    num_computed: int
    """Tokens whose KV is already in the blocks below (prefix-cache hit or fork); < len(token_ids)."""
    block_ids: list[list[int]]
    """[group][i]: the block that holds tokens [i*block_size, (i+1)*block_size) of that group's layers. 0 is the null block:
    it lies wholly behind the group's window and is never read."""
    sampling: SamplingParams
    """With this choice's own seed."""


class StepPlan(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One step. Parallel arrays; empty is legal (expert-parallel ranks step together)."""

    step_id: int
    freed_rows: list[int]
    copies: list[tuple[int, int]]
    """(source block, destination block), made before anything is computed: copy before write."""
    new_rows: list[NewRow]
    rows: list[int]
    """Scheduled rows, each at most once."""
    num_tokens: list[int]
    """Parallel to rows, each >= 1."""
    new_blocks: list[tuple[int, int, list[int]]]
    """(row, group, block ids appended to the row's table of that group before the step): only rows that grew. A row in new_rows
    brings all its blocks itself and is not repeated here."""
    replaced_block_ids: list[tuple[int, int, int, int]]
    """(row, group, index, block id): table entries that change without growing, after a copy (shared block copied before it is
    written) or with block id 0 (fell behind the window). Applied before the step."""
    has_masks: bool = False
    """Some sampled row's token depends on a mask that `sample` is given: the step may not choose by itself."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a step sampled. `rows` are the sampled ones, a subset of the plan's, in the plan's order."""

    step_id: int
    rows: list[int]
    token_ids: list[list[int]]
    """Parallel to rows: 0..k tokens each (1 without speculation)."""
    logprobs: list[list[TokenLogprobs] | None]
    """Parallel to rows; None where the request asked for none."""
    prompt_logprobs: dict[int, PromptLogprobs] = {}
    """By row, sampled or not: those of the prompt tokens that follow the ones computed in this step."""
    failed: dict[int, str] = {}
    """By row, one of request's FAILED_ constants: what the step made of it means nothing."""


class Handle(Protocol):
    """A launched step."""

    def result(self) -> StepResult:
        """Wait for the step's tokens. Raises what the step raised."""
        ...


class TokenMasks(msgspec.Struct, frozen=True, array_like=True):
    """Which tokens each sampled row may take (structured output); rows that are not named may take any."""

    rows: list[int]
    bits: memoryview
    """Bytes: the masks one behind the other, parallel to rows and all of one length, a multiple of 4. One bit a token id, LSB first;
    at least as many as the vocabulary has."""


class Runner(Protocol):
    """Carries out plans. `sample` follows each `launch`, in order, before the next `launch`."""

    def launch(self, plan: StepPlan) -> Handle: ...

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None: ...

    def close(self) -> None: ...


class KVGroup(msgspec.Struct, frozen=True, array_like=True):
    """Layers that share one block table because they keep the same tokens."""

    num_layers: int
    window: int | None = None
    """Tokens a layer looks back, itself included: position i attends to j with i - j < window. None: all."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a loaded runner tells the scheduler and the API process."""

    vocab_size: int
    max_model_len: int
    """Tokens of prompt + output at most, already fitted to the KV pool."""
    num_blocks: int
    """Physical blocks, the null block 0 included."""
    block_size: int
    groups: list[KVGroup]
    device: str
    dtype: str
    num_parameters: int = 0
    weights_size_bytes: int = 0
    kv_size_bytes: int = 0
    phases_s: dict[str, float] = {}
    """Seconds each start-up phase took, by name."""
    embedding: EmbeddingInfo | None = None
    """What a model makes instead of text; None: it generates."""
    weights_read_bytes: int = 0
    """Of the checkpoint's tensors, as they lie in its files."""
    weights_began_s: float | None = None
    """When their reading began, by the clock that all processes of the machine share (CLOCK_MONOTONIC, seconds); None: none were read."""
