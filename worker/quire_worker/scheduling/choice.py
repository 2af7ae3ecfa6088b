"""What is scheduled: one choice of one request, as num_computed catching up with num_known.

Holds state and no policy. One choice's tokens (P prompt, half-open intervals):

    0 ............ num_computed ........ num_planned ........ len(token_ids) ........ num_known ........ max_total
    │ KV committed │ plans in flight      │ to be planned      │ sampled, on their way │ may still come
    └───────────────── token_ids ────────────────────────────┘ └─ placeholders ──────┘
"""

from enum import IntEnum
from typing import TYPE_CHECKING

import msgspec

from quire_worker.kv.block_manager import BlockTable
from quire_worker.kv.digest_chain import DigestChain
from quire_worker.request import PromptLogprobs, SamplingParams

if TYPE_CHECKING:
    from quire_worker.grammar.matcher import Matcher

Rank = tuple[float, ...]
"""The order of service: smaller is sooner. See policy.py."""


class Status(IntEnum):
    """RUNNING is 0, so that the hot loops test truth only."""

    RUNNING = 0
    WAITING = 1
    """In the queue, new or preempted. A preempted one keeps its blocks until the plans in flight that use them commit."""
    SIBLING = 2
    """Waits for the choice that computes the prompt for it."""
    FINISHED = 3


class Choice:
    """One choice. Age is (arrival number of the request, index): a smaller age is older. Origin names the client's request, which may have
    several prompts: see Submit.origin. Whether it is streamed is told by Submit.is_streamed."""

    __slots__ = (
        "age",
        "arrived_s",
        "capacity",
        "chain",
        "ending",
        "ends_empty",
        "index",
        "is_streamed",
        "matcher",
        "max_total",
        "milestone",
        "min_total",
        "num_cached",
        "num_computed",
        "num_given_way",
        "num_known",
        "num_planned",
        "num_preemptions",
        "num_prompt",
        "num_untold_preemptions",
        "origin",
        "priority",
        "prompt_logprobs",
        "queue_time_s",
        "rank",
        "repetition",
        "request_id",
        "row",
        "sampling",
        "siblings",
        "status",
        "table",
        "token_ids",
        "was_admitted",
    )

    def __init__(
        self,
        request_id: str,
        age: tuple[int, int],
        token_ids: list[int],
        sampling: SamplingParams,
        chain: DigestChain,
        max_total: int,
        arrived_s: float,
        num_prompt: int,
    ) -> None:
        """`token_ids` are the prompt's `num_prompt` and, of a choice that was begun elsewhere, its output so far."""
        self.request_id = self.origin = request_id
        self.index = age[1]
        self.age = age
        self.token_ids = token_ids
        """Prompt and committed output."""
        self.sampling = sampling
        """With this choice's own seed; without `prompt_logprobs` once they have been told."""
        self.chain = chain
        self.num_prompt = num_prompt
        self.max_total = max_total
        """Prompt + output tokens at most."""
        self.min_total = num_prompt + sampling.min_tokens
        self.ending = frozenset(sampling.ending_token_ids)
        self.matcher: Matcher | None = None
        """Its place in the grammar that it must match."""
        self.arrived_s = arrived_s
        self.priority = 0
        """Lower first; looked at by one policy only."""
        self.rank: Rank = age
        """Given by the policy, when the choice arrives and when it is preempted."""
        self.num_preemptions = self.num_given_way = self.num_untold_preemptions = 0
        """All; of those, because the policy let others in before it; and of all, those that no output has told yet."""
        self.status = Status.WAITING
        self.siblings: list[Choice] = []
        """Choices that wait for this one's prompt."""
        self.was_admitted, self.is_streamed = False, True
        self.num_cached = 0
        """Prompt tokens found in the cache at first admission, until they have been told."""
        self.queue_time_s: float | None = None
        """Time until the first admission, until it has been told."""
        self.prompt_logprobs: list[PromptLogprobs] = []
        """As far as they are known, until they have been told."""
        self.repetition = sampling.repetition_detection
        self.row = 0
        """Valid while RUNNING."""
        self.table: BlockTable | None = None
        self.restart()
        self.milestone = 0
        """num_computed at which commit has more to do than to count: a block fills or the prompt is complete."""

    @property
    def is_in_flight(self) -> bool:
        """Whether a launched plan that has not been committed computes tokens of this choice."""
        return self.num_planned > self.num_computed

    @property
    def reads_cache(self) -> bool:
        """A prompt whose log-probabilities are wanted must be computed, whatever is in the cache."""
        return self.sampling.prompt_logprobs is None

    @property
    def num_readable(self) -> int:
        """Tokens that may be taken from the cache: the last one is computed for its logits."""
        return self.num_known - 1 if self.reads_cache else 0

    def take_prompt_logprobs(self) -> list[PromptLogprobs] | None:
        """All of them, to be told with the first token; None if none were asked for. From now on none are."""
        if self.sampling.prompt_logprobs is None:
            return None
        self.sampling = msgspec.structs.replace(self.sampling, prompt_logprobs=None)
        told, self.prompt_logprobs = self.prompt_logprobs, []
        return told

    def take_preemptions(self) -> int:
        """How often it was preempted since this was asked last."""
        told, self.num_untold_preemptions = self.num_untold_preemptions, 0
        return told

    @property
    def awaits_token(self) -> bool:
        """Whether a token that comes before the next one to be sampled is still on its way."""
        return self.num_known - 1 > len(self.token_ids)

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Tokens that would end the choice but may not come yet, or never."""
        sampling = self.sampling
        if len(self.token_ids) < self.min_total:
            return sampling.stop_token_ids + sampling.eos_token_ids
        return sampling.eos_token_ids if sampling.ignore_eos else ()

    def restart(self) -> None:
        """Compute everything again: the blocks are gone."""
        self.table = None
        self.capacity = 0
        """Tokens the table has room for."""
        self.num_computed = self.num_planned = 0
        self.num_known = len(self.token_ids)
        self.prompt_logprobs = []
        self.ends_empty = False
        """Its grammar lets no token follow the prompt: it ends when the step in flight has brought the prompt's log-probabilities."""
