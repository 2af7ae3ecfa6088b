"""The engine on the device against two oracles: the reference ops on the CPU, and transformers where it can be imported.

Tiny random models of every architecture go through the real scheduler and runner: one batch, chunked and two steps ahead, with blocks so
short that requests are preempted, greedy and with seeds. Every sampled token must be the best of the oracle's logits for the same prefix,
near ties excused.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gpu.cases import Verdict
from gpu.models import TINY_MODELS, TINY_VOCABULARY, write_fp8_checkpoint, write_tiny_checkpoint
from gpu.sides import Outcome, Side, Watched
from quire_kernels.sampling import SamplingTensors, perturbed_logits
from quire_worker.execution.device import FP8_CAPABILITY
from quire_worker.execution.options import RunnerOptions
from quire_worker.request import SamplingParams, Submit

EXCUSED_GAP = 1e-4
"""Two float32 implementations may differ where the two best perturbed logits are closer than this."""
MAX_LOGPROB_ERROR = 1e-3
"""Of one float32 implementation against another, over a prompt's last position."""
BLOCK_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is run."""

    prompt_lengths: tuple[int, ...]
    max_tokens: int
    models: tuple[str, ...]


FULL = Scale(
    prompt_lengths=(1, 2, 3, 5, 8, 13, 15, 16, 17, 25, 31, 33, 48, 64, 65, 97, 128, 129, 160, 200),
    max_tokens=32,
    models=tuple(TINY_MODELS),
)
SMALL = Scale(prompt_lengths=(3, 17), max_tokens=2, models=("llama",))
"""For Triton's interpreter."""


class Oracle(Protocol):
    """What the tokens are judged by."""

    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        """[len(output), V] float32: what each output token is drawn from, but for a constant."""
        ...


class ReferenceOracle:
    """Our engine in float32 on the CPU by the reference ops: every prefix is a prompt of its own, with all log-probabilities asked for."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        """See Oracle."""
        return logprobs_of(self._side, [[*prompt, *output[:i]] for i in range(len(output))])


class TransformersOracle:
    """transformers in float32 on the CPU. Raises ImportError where it is missing."""

    def __init__(self, folder: Path) -> None:
        transformers: Any = import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        """See Oracle."""
        token_ids = torch.tensor([[*prompt, *output[:-1]]])
        logits: Tensor = self._model(token_ids).logits[0, len(prompt) - 1 :]
        return logits.float()


def logprobs_of(side: Side, prompts: Sequence[Sequence[int]]) -> Tensor:
    """[len(prompts), V] float32: of the token after each prompt."""
    sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=TINY_VOCABULARY)
    outcomes = side.generate(
        [Submit(request_id=str(i), prompt_token_ids=list(p), sampling=sampling) for i, p in enumerate(prompts)]
    )
    rows = torch.empty(len(prompts), TINY_VOCABULARY)
    for i in range(len(prompts)):
        (entry,) = outcomes[str(i)].logprobs
        rows[i, list(entry.top_ids)] = torch.tensor(entry.top_logprobs)
    return rows


def engine_verdicts(model: str, device: torch.device, ops: str, scale: Scale) -> Iterator[Verdict]:
    """Every check of one model."""
    with tempfile.TemporaryDirectory() as name:
        bench = _ModelBench(write_tiny_checkpoint(Path(name), model), model, device, ops, scale)
        for check_name, check in bench.checks().items():
            start = time.perf_counter()
            try:
                found = check()
            except Exception as error:  # noqa: BLE001 - what the engine raised is the finding
                found = _Found(passes=False, message=f"{type(error).__name__}: {error}"[:600])
            yield Verdict(
                op="engine",
                name=f"{model}: {check_name}",
                passes=found.passes,
                error=found.error,
                units=None,
                seconds=time.perf_counter() - start,
                message=found.message,
            )


CHECK_NAMES = (
    "logits of prompts",
    "greedy, depth 1",
    "greedy, depth 2, chunked",
    "greedy, depth 2, preempted",
    "seeded sampling, depth 2, chunked",
    "two runs have the same bits",
    "batch-invariant: the same bits alone and in company",
    "bfloat16 logits",
    "logits quantised to FP8",
    "logits of an FP8 checkpoint",
    "transformers: greedy and seeded",
)


@dataclass(frozen=True, kw_only=True)
class _Found:
    passes: bool
    error: float | None = None
    message: str = ""


class _ModelBench:
    def __init__(self, folder: Path, model: str, device: torch.device, ops: str, scale: Scale) -> None:
        self._folder, self._device, self._ops, self._scale = folder, device, ops, scale
        self._model = model
        generator = torch.Generator().manual_seed(1)
        self._prompts = [
            torch.randint(0, TINY_VOCABULARY, (n,), generator=generator).tolist() for n in scale.prompt_lengths
        ]
        self._reference = self._side("cpu", "reference")
        self._oracle = ReferenceOracle(self._reference)
        self._outputs: dict[str, list[list[int]]] = {}

    def checks(self) -> dict[str, Callable[[], _Found]]:
        """By name, in CHECK_NAMES' order."""
        runs: list[Callable[[], _Found]] = [
            self._check_logits,
            lambda: self._check_tokens(self._greedy, depth=1, chunk=4096),
            lambda: self._check_tokens(self._greedy, depth=2, chunk=48),
            self._check_preempted,
            lambda: self._check_tokens(self._seeded, depth=2, chunk=48),
            self._check_repeatable,
            self._check_invariant,
            lambda: self._compare_errors(self._folder, dtype="bfloat16"),
            self._check_quantised,
            self._check_fp8_checkpoint,
            self._check_transformers,
        ]
        return dict(zip(CHECK_NAMES, runs, strict=True))

    # ---- requests and sides

    def _greedy(self, index: int) -> SamplingParams:
        return SamplingParams(max_tokens=self._scale.max_tokens, temperature=0.0)

    def _seeded(self, index: int) -> SamplingParams:
        """Every mixture of cuts; seeds of 64 bits."""
        return SamplingParams(
            max_tokens=self._scale.max_tokens,
            temperature=0.5 + 0.1 * (index % 8),
            top_p=(1.0, 0.9)[index % 2],
            top_k=(0, 40, 7)[index % 3],
            min_p=(0.0, 0.02)[index // 2 % 2],
            seed=2**64 - 1 - index,
        )

    def _submits(self, sampling: Callable[[int], SamplingParams]) -> list[Submit]:
        return [
            Submit(request_id=str(i), prompt_token_ids=list(prompt), sampling=sampling(i))
            for i, prompt in enumerate(self._prompts)
        ]

    def _side(
        self,
        device: str,
        ops: str,
        *,
        folder: Path | None = None,
        chunk: int = 4096,
        blocks: int | None = None,
        **changes: Any,
    ) -> Side:
        longest = max(self._scale.prompt_lengths) + self._scale.max_tokens
        return Side(
            RunnerOptions(
                model_dir=folder or self._folder,
                device=device,
                ops=ops,
                compute_threads=1,
                max_model_len=longest,
                max_num_seqs=32,
                max_num_batched_tokens=chunk,
                block_size=BLOCK_SIZE,
                num_gpu_blocks_override=blocks or 1200,
                **{"dtype": "float32", **changes},
            )
        )

    def _under_test(self, **changes: Any) -> Side:
        return self._side(self._device.type, self._ops, **changes)

    # ---- checks

    def _check_logits(self) -> _Found:
        side = self._under_test()
        error = float((logprobs_of(side, self._prompts) - logprobs_of(self._reference, self._prompts)).abs().max())
        side.close()
        return _Found(passes=error <= MAX_LOGPROB_ERROR, error=error)

    def _check_tokens(self, sampling: Callable[[int], SamplingParams], *, depth: int, chunk: int) -> _Found:
        side = self._under_test(chunk=chunk)
        watched = Watched(side.runner)
        side.fresh(depth=depth, wrap=lambda _: watched)
        outcomes = side.generate(self._submits(sampling))
        side.close()
        self._outputs[sampling.__name__] = [outcomes[str(i)].token_ids for i in range(len(self._prompts))]
        judged = self._judge(self._oracle, outcomes, sampling)
        is_recorded = self._device.type == "cuda" and sampling == self._greedy
        if judged.passes and is_recorded and not watched.num_chosen:
            return _Found(passes=False, message="no step chose by itself: the check does not check")
        message = judged.message or f"{watched.num_chosen} steps chose by themselves"
        return _Found(passes=judged.passes, error=judged.error, message=message)

    def _check_preempted(self) -> _Found:
        """Blocks for the longest request and little more."""
        probe = self._reference.info
        longest = -(-(max(self._scale.prompt_lengths) + self._scale.max_tokens) // BLOCK_SIZE)
        side = self._under_test(chunk=64, blocks=2 + len(probe.groups) * (longest + 2))
        side.fresh(depth=2)
        outcomes = side.generate(self._submits(self._greedy))
        preemptions = side.scheduler.counters.num_preemptions
        side.close()
        judged = self._judge(self._oracle, outcomes, self._greedy)
        if judged.passes and not preemptions and self._scale is FULL:
            return _Found(passes=False, message="nothing was preempted: the check does not check")
        return _Found(passes=judged.passes, error=judged.error, message=judged.message or f"{preemptions} preemptions")

    def _check_repeatable(self) -> _Found:
        def sampling(index: int) -> SamplingParams:
            return SamplingParams(max_tokens=self._scale.max_tokens, temperature=1.0, seed=index, logprobs=3)

        side = self._under_test(chunk=48)
        results = []
        for _ in range(2):
            side.fresh(depth=2, caching=False)
            results.append(side.generate(self._submits(sampling)))
        side.close()
        return _Found(passes=results[0] == results[1])

    def _check_invariant(self) -> _Found:
        """Requests together, in chunks two steps ahead, and each by itself: tokens and log-probabilities, prompts and decode steps."""
        if self._ops == "cpu":
            return _Found(passes=True, message="always so in this backend")
        tokens = min(4, self._scale.max_tokens)
        # So many log-probabilities are one kernel's; more are torch's, whose sums depend on the number of rows.
        submits = self._submits(lambda _: SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=20))
        found = []
        for chunk, depth, parts in ((4096, 1, [submits]), (48, 2, [submits]), (4096, 1, [[one] for one in submits])):
            side = self._under_test(chunk=chunk, dtype="bfloat16", batch_invariant=True)
            outcomes: dict[str, Outcome] = {}
            for part in parts:
                side.fresh(depth=depth, caching=False)
                outcomes |= side.generate(part)
            side.close()
            found.append(outcomes)
        return _Found(passes=found[0] == found[1] == found[2])

    def _check_quantised(self) -> _Found:
        return self._computes_no_fp8() or self._compare_errors(self._folder, dtype="bfloat16", quantization="fp8")

    def _check_fp8_checkpoint(self) -> _Found:
        if (found := self._computes_no_fp8()) is not None:
            return found
        return self._compare_errors(write_fp8_checkpoint(self._folder / "fp8", self._model), dtype="bfloat16")

    def _computes_no_fp8(self) -> _Found | None:
        if self._ops == "cpu":
            return _Found(passes=True, message="not in this backend")
        if self._device.type == "cuda" and torch.cuda.get_device_capability(self._device) < FP8_CAPABILITY:
            return _Found(passes=True, message="not on this device")
        return None

    def _compare_errors(self, folder: Path, **changes: Any) -> _Found:
        """At most twice as far from float32 as the reference ops with these options are."""
        # Ops of a CPU dequantise what is FP8.
        sides = [self._side("cpu", "cpu-torch", folder=folder)]
        sides += [self._under_test(folder=folder, **changes), self._side("cpu", "reference", folder=folder, **changes)]
        exact, *others = [logprobs_of(side, self._prompts) for side in sides]
        for side in sides:
            side.close()
        found, reference = (float((logprobs - exact).abs().max()) for logprobs in others)
        return _Found(passes=found <= 2 * reference, error=found, message=f"reference ops: {reference:.3g}")

    def _check_transformers(self) -> _Found:
        try:
            oracle = TransformersOracle(self._folder)
        except ImportError as error:
            return _Found(passes=True, message=f"not run: {error}")
        worst = 0.0
        for sampling in (self._greedy, self._seeded):
            outputs = self._outputs.get(sampling.__name__)
            if outputs is None:
                return _Found(passes=False, message="no tokens to judge: an earlier check raised")
            judged = self._judge(oracle, {str(i): Outcome(o) for i, o in enumerate(outputs)}, sampling)
            if not judged.passes:
                return judged
            worst = max(worst, judged.error or 0.0)
        return _Found(passes=True, error=worst)

    def _judge(self, oracle: Oracle, outcomes: dict[str, Outcome], sampling: Callable[[int], SamplingParams]) -> _Found:
        """error: the largest gap by which the oracle prefers another token."""
        worst = 0.0
        for i, prompt in enumerate(self._prompts):
            output = outcomes[str(i)].token_ids
            if len(output) != self._scale.max_tokens:
                return _Found(passes=False, message=f"request {i} got {len(output)} tokens")
            gaps = preference_gaps(oracle.logits(prompt, output), output, sampling(i))
            worst = max(worst, float(gaps.max()))
            if worst > EXCUSED_GAP:
                at = int((gaps > EXCUSED_GAP).nonzero()[0])
                return _Found(passes=False, error=worst, message=f"prompt of {len(prompt)}: output token {at} differs")
        return _Found(passes=True, error=worst)


def preference_gaps(logits_NV: Tensor, output: Sequence[int], sampling: SamplingParams) -> Tensor:
    """[N]: how much better than the token that came the oracle's best one is, after noise and cuts; 0 where they agree. A token that lies
    just beyond a cut counts as the gap between the raw scaled logits at the cut."""
    count = len(output)
    seed = sampling.seed - 2**64 if sampling.seed >= 2**63 else sampling.seed
    params = SamplingTensors(
        temperature=torch.full((count,), sampling.temperature),
        top_k=torch.full((count,), sampling.top_k, dtype=torch.int32),
        top_p=torch.full((count,), sampling.top_p),
        min_p=torch.full((count,), sampling.min_p),
        seeds=torch.full((count,), seed),
        positions=torch.arange(count),
    )
    perturbed = perturbed_logits(logits_NV, params)
    chosen = torch.tensor(output)[:, None]
    gaps = perturbed.max(-1).values - perturbed.gather(-1, chosen)[:, 0]
    beyond = ~gaps.isfinite()
    if bool(beyond.any()):
        scaled = logits_NV / (sampling.temperature or 1.0)
        kept_least = scaled.masked_fill(perturbed == float("-inf"), float("inf")).amin(-1)
        gaps = torch.where(beyond, kept_least - scaled.gather(-1, chosen)[:, 0], gaps)
    return gaps.clamp(min=0)
