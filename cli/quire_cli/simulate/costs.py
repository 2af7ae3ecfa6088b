"""What a step of the engine costs: a roofline with six coefficients, from a GPU's data sheet or from a measurement.

    step_s = overhead_s + row_s * rows + max(weights_s, token_s * tokens) + kv_s * kv_tokens + pair_s * pairs

    rows       requests in the step               tokens  tokens computed, decoding rows' and prompts'
    kv_tokens  tokens of KV that decoding rows read   pairs   (query, key) pairs of prompt tokens' attention

The linear layers either wait for the weights (few tokens) or for the multipliers (many): Williams, Waterman, Patterson, "Roofline", 2009.
Attention is a kernel of its own and comes on top. Knows nothing of requests and clocks.
"""

from pathlib import Path

import msgspec

from quire_cli.errors import CommandError

FORMAT = "quire-step-cost-v1"


class StepCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds, each at least 0."""

    overhead_s: float
    """Of every step."""
    row_s: float
    """Of each row: sampling, and telling its token."""
    weights_s: float
    """To read the weights once."""
    token_s: float
    """Of one token's multiplications."""
    kv_s: float
    """To read one token's KV."""
    pair_s: float
    """Of one query-key pair over all layers and heads."""
    request_s: float = 0.0
    """Of each request outside the engine: reading, tokenising, the first event's way back."""

    def step_s(self, rows: int, tokens: int, kv_tokens: float, pairs: float) -> float:
        """One step."""
        linear_s = max(self.weights_s, self.token_s * tokens)
        return self.overhead_s + self.row_s * rows + linear_s + self.kv_s * kv_tokens + self.pair_s * pairs


class WorkerShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one worker is: the engine's own limits, in tokens unless a name says otherwise."""

    kv_blocks: int
    """Blocks that hold tokens (the null block not among them)."""
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    max_num_queued_reqs: int = 1024
    max_num_partial_prefills: int = 4
    depth: int = 2
    """Plans in flight: 2 on a GPU, 1 on a CPU."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that its KV holds."""
        return self.kv_blocks * self.block_size


class CostFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `make simulate-calibrate` writes and `--cost` reads, as JSON."""

    format: str
    measured: str
    """Where and when, in words."""
    worker: WorkerShape
    cost: StepCost
    errors: dict[str, float] = {}
    """Relative error of the fit at each measured point, by its name."""


def read_cost_file(path: Path) -> CostFile:
    """The file. CommandError naming the field and the fix."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=CostFile)
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise CommandError(f"{path}: {error}; write it with `make simulate-calibrate`") from None
    problem = problem_of(found)
    if problem is not None:
        raise CommandError(f"{path}: {problem}")
    return found


def problem_of(found: CostFile) -> str | None:
    """What makes the file useless; None: nothing."""
    if found.format != FORMAT:
        return f"format: is {found.format!r}; this version reads {FORMAT}"
    costs = msgspec.structs.asdict(found.cost)
    for name, value in costs.items():
        if not 0 <= value < 1e3:
            return f"cost.{name}: is {value}; give seconds between 0 and 1000"
    if found.cost.step_s(1, 1, 1, 0) <= 0:
        return "cost: a step would take no time; measure again"
    for name, size in msgspec.structs.asdict(found.worker).items():
        if size < 1:
            return f"worker.{name}: is {size}; give at least 1"
    if found.worker.max_model_len > found.worker.kv_tokens - found.worker.block_size:
        return "worker.max_model_len: does not fit into kv_blocks x block_size; the longest request must"
    if found.worker.max_num_batched_tokens < found.worker.max_num_seqs:
        return "worker.max_num_batched_tokens: is smaller than max_num_seqs; every running request computes one token"
    return None
