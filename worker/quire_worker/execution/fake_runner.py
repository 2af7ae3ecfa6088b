"""A runner without a model: tokens are a pure function of the sequence so far, read back through the block tables.

It keeps what a real KV cache would keep (which token was written into which slot of which block) and derives the next token from
what attention would read. So prefix cache, chunks, preemption and plans in flight cannot change its tokens unless a block
table, a count or a copy is wrong. It also refuses plans that no runner could carry out. No torch; time passes only through
an injected `sleep`.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from quire_worker.plan import Handle, KVGroup, ModelInfo, NewRow, StepPlan, StepResult, TokenMasks
from quire_worker.request import PromptLogprobs, SamplingParams, TokenLogprobs

_TOKEN = "I"  # noqa: S105 - array typecode of a token id, 4 bytes
_EMPTY_SLOT = 2**32 - 1
_HALF = -0.6931471805599453


@dataclass(frozen=True, kw_only=True)
class FakeLatency:
    """Pretended time, passed to `sleep` when a step's result is waited for."""

    prefill_s_per_token: float = 0.0
    """For each token beyond the first of every row."""
    step_s: float = 0.0
    """For each step."""
    sleep: Callable[[float], None]


class FakeRunner:
    """A Runner (see plan.py) of `info`'s shape."""

    def __init__(
        self, info: ModelInfo, *, max_num_seqs: int, seed: int = 0, latency: FakeLatency | None = None
    ) -> None:
        self._info = info
        self._max_num_seqs = max_num_seqs
        self._latency = latency
        self._cache = array(_TOKEN, [_EMPTY_SLOT]) * (info.num_blocks * info.block_size)
        self._rows: dict[int, _Row] = {}
        self._chooser = TokenChooser(info.vocab_size, seed)

    def launch(self, plan: StepPlan) -> Handle:
        """Apply the plan's deltas and write its tokens into the cache."""
        for row in plan.freed_rows:
            self._rows.pop(row, None)
        for source, destination in plan.copies:
            self._copy(source, destination)
        for new in plan.new_rows:
            self._set_up(new)
        for row, group, blocks in plan.new_blocks:
            self._check_blocks(blocks)
            self._rows[row].block_ids[group].extend(blocks)
        for row, group, index, block in plan.replaced_block_ids:
            assert 0 <= block < self._info.num_blocks, f"block {block} does not exist"
            self._rows[row].block_ids[group][index] = block
        assert len(set(plan.rows)) == len(plan.rows), "a row is scheduled twice"
        handle = _FakeHandle(plan, self._latency)
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            state, start = self._rows[row], self._rows[row].num_computed
            self._compute(state, count)
            scores = fake_prompt_logprobs(state.token_ids[: state.num_prompt_tokens], start, count, state.sampling)
            if scores is not None:
                handle.prompt_logprobs[row] = scores
        return handle

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        """Choose the next token of every row whose known tokens are all computed."""
        assert isinstance(handle, _FakeHandle), "a handle of this runner"
        allowed = {} if masks is None else dict(zip(masks.rows, _split(masks), strict=True))
        for row in handle.plan.rows:
            state = self._rows[row]
            if state.num_computed == len(state.token_ids):
                self._sample_row(handle, row, state, allowed.get(row))

    def fall_asleep(self) -> Iterator[int]:
        """See dormant.Dormant: what the cache held is gone."""
        self._cache = array(_TOKEN)
        yield self._info.num_blocks * self._info.block_size * self._cache.itemsize

    def wake(self) -> Iterator[int]:
        """See dormant.Dormant."""
        self._cache = array(_TOKEN, [_EMPTY_SLOT]) * (self._info.num_blocks * self._info.block_size)
        yield len(self._cache) * self._cache.itemsize

    def close(self) -> None:
        """Forget all rows."""
        self._rows.clear()

    def _set_up(self, new: NewRow) -> None:
        assert 0 <= new.row < self._max_num_seqs, f"row {new.row} does not exist"
        assert new.row not in self._rows, f"row {new.row} is set up twice"
        assert 0 <= new.num_computed < len(new.token_ids), "a new row computes at least one token"
        assert 0 < new.num_prompt_tokens <= len(new.token_ids)
        assert len(new.block_ids) == len(self._info.groups), "a table for each group"
        assert all(0 <= token < self._info.vocab_size for token in new.token_ids), (
            "a token id is outside the vocabulary"
        )
        for blocks in new.block_ids:
            self._check_blocks(block for block in blocks if block)
        self._rows[new.row] = _Row(new)

    def _check_blocks(self, blocks: Iterable[int]) -> None:
        assert all(0 < block < self._info.num_blocks for block in blocks), "a block does not exist"

    def _copy(self, source: int, destination: int) -> None:
        assert 0 < source < self._info.num_blocks and 0 < destination < self._info.num_blocks
        size = self._info.block_size
        self._cache[destination * size : (destination + 1) * size] = self._cache[source * size : (source + 1) * size]

    def _compute(self, row: "_Row", count: int) -> None:
        """Write tokens [num_computed, num_computed + count) into every group's blocks."""
        stop = row.num_computed + count
        assert count >= 1 and stop <= len(row.token_ids), "a step computes known tokens only"
        assert stop <= self._info.max_model_len, "a sequence is longer than the model"
        size = self._info.block_size
        for blocks in row.block_ids:
            for position in range(row.num_computed, stop):
                block = blocks[position // size]
                assert block, f"position {position} would be written to the null block"
                self._cache[block * size + position % size] = row.token_ids[position]
        row.num_computed = stop

    def _read(self, row: "_Row", group: KVGroup, blocks: Sequence[int]) -> bytes:
        """The tokens that the row's last computed position attends to, as this group's blocks hold them."""
        size, stop = self._info.block_size, row.num_computed
        start = 0 if group.window is None else max(0, stop - group.window)
        first = start // size
        parts = []
        for block in blocks[first : -(-stop // size)]:
            assert block, "the null block would be read"
            parts.append(self._cache[block * size : (block + 1) * size].tobytes())
        return b"".join(parts)[4 * (start - first * size) : 4 * (stop - first * size)]

    def _sample_row(self, handle: "_FakeHandle", row: int, state: "_Row", allowed: memoryview | None) -> None:
        groups = zip(self._info.groups, state.block_ids, strict=True)
        context = b"".join(self._read(state, group, blocks) for group, blocks in groups)
        position = len(state.token_ids) - state.num_prompt_tokens
        output = state.token_ids[state.num_prompt_tokens :]
        token = self._chooser.choose(context, state.sampling, position, allowed, output)
        state.token_ids.append(token)
        handle.add(row, token, self._chooser.logprobs(context, token, state.sampling))


class TokenChooser:
    """The pretended model and sampler: context bytes and parameters to a token."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self._seed = seed

    def choose(
        self,
        context: bytes,
        sampling: SamplingParams,
        position: int,
        allowed: memoryview | None = None,
        output: Sequence[int] = (),
    ) -> int:
        """Greedy ignores the request's seed; otherwise seed and output position count too. Masked tokens are passed over upwards."""
        noise = b"" if sampling.temperature == 0 else f"{sampling.seed} {position}".encode()
        token = self._draw(context + noise)
        banned = set(sampling.ending_token_ids if position < sampling.min_tokens else ())
        banned |= {word[-1] for word in sampling.bad_words if list(word[:-1]) == output[len(output) - len(word) + 1 :]}
        if sampling.allowed_token_ids:
            banned |= set(range(self._vocab_size)).difference(sampling.allowed_token_ids)
        for _ in range(self._vocab_size):
            if token not in banned and (allowed is None or allowed[token >> 3] >> (token & 7) & 1):
                return token
            token = (token + 1) % self._vocab_size
        raise AssertionError("every token is masked")

    def logprobs(self, context: bytes, token: int, sampling: SamplingParams) -> TokenLogprobs | None:
        """Made up but well formed: the chosen token is the most likely one, each next one half as likely."""
        if sampling.logprobs is None:
            return None
        if sampling.logprob_token_ids:
            named = tuple(-1.0 - (token_id % 8) for token_id in sampling.logprob_token_ids)
            return TokenLogprobs(logprob=_HALF, rank=1, top_ids=sampling.logprob_token_ids, top_logprobs=named)
        count = min(sampling.logprobs, self._vocab_size)
        first = self._draw(context + b"others")
        others = [t for i in range(count + 1) if (t := (first + i) % self._vocab_size) != token]
        top = [token, *others][:count]
        values = [_HALF * (1 + rank) for rank in range(count)]
        return TokenLogprobs(logprob=_HALF, rank=1, top_ids=tuple(top), top_logprobs=tuple(values))

    def _draw(self, data: bytes) -> int:
        digest = blake2b(data, digest_size=8, key=self._seed.to_bytes(8, "little")).digest()
        return int.from_bytes(digest, "little") % self._vocab_size


def fake_prompt_logprobs(prompt: list[int], start: int, count: int, sampling: SamplingParams) -> PromptLogprobs | None:
    """Of the tokens after prompt[start : start + count], which step computes: each prompt token is the likeliest in its place."""
    guessed = prompt[start + 1 : start + count + 1]
    if sampling.prompt_logprobs is None or not guessed:
        return None
    num_top = sampling.prompt_logprobs
    return PromptLogprobs(
        first=start + 1,
        num_top=num_top,
        logprobs=array("f", [_HALF] * len(guessed)).tobytes(),
        ranks=array("i", [1] * len(guessed)).tobytes(),
        top_ids=array("i", [token ^ rank for token in guessed for rank in range(num_top)]).tobytes(),
        top_logprobs=array("f", [_HALF * (1 + rank) for _ in guessed for rank in range(num_top)]).tobytes(),
    )


def _split(masks: TokenMasks) -> list[memoryview]:
    size = len(masks.bits) // len(masks.rows)
    return [masks.bits[start : start + size] for start in range(0, len(masks.bits), size)]


class _Row:
    """What the runner knows of a row."""

    __slots__ = ("block_ids", "num_computed", "num_prompt_tokens", "sampling", "token_ids")

    def __init__(self, new: NewRow) -> None:
        self.token_ids = new.token_ids.copy()
        self.num_prompt_tokens = new.num_prompt_tokens
        self.num_computed = new.num_computed
        self.block_ids = [blocks.copy() for blocks in new.block_ids]
        self.sampling = new.sampling


class _FakeHandle:
    """A step that is done as soon as it is sampled."""

    def __init__(self, plan: StepPlan, latency: FakeLatency | None) -> None:
        self.plan = plan
        self._latency = latency
        self._rows: list[int] = []
        self._token_ids: list[list[int]] = []
        self._logprobs: list[list[TokenLogprobs] | None] = []
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}

    def add(self, row: int, token: int, logprobs: TokenLogprobs | None) -> None:
        """Record a sampled token."""
        self._rows.append(row)
        self._token_ids.append([token])
        self._logprobs.append(None if logprobs is None else [logprobs])

    def result(self) -> StepResult:
        """The step's tokens, after its pretended time."""
        if self._latency is not None and self.plan.rows:
            prefill = sum(self.plan.num_tokens) - len(self.plan.rows)
            seconds = self._latency.step_s + prefill * self._latency.prefill_s_per_token
            if seconds > 0:
                self._latency.sleep(seconds)
        return StepResult(
            step_id=self.plan.step_id,
            rows=self._rows,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )
