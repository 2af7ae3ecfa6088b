"""Our engine with Triton's ops under the interpreter, on a GPU's road: resident rows, recorded decode steps, nothing that waits.

    python triton_side.py FOLDER MAX_TOKENS     prompts as JSON on standard input, tokens as JSON on standard output

A process of its own, because the interpreter must be chosen, and mended as tests/kernels/conftest.py does it, before Triton's kernels are
imported.
"""

import itertools
import json
import runpy
import sys
from pathlib import Path

from device_road import CallRecorder, NoWaiting

from quire_worker.engine.engine import Engine
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.execution.runner import TorchRunner
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import Handle, StepPlan, TokenMasks
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler


class Unwaiting:
    """A runner that may not wait in launch and sample."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.close = runner.close

    def launch(self, plan: StepPlan) -> Handle:
        with NoWaiting():
            return self._runner.launch(plan)

    def sample(self, handle: Handle, masks: TokenMasks | None) -> None:
        with NoWaiting():
            self._runner.sample(handle, masks)


def main() -> None:
    runpy.run_path(str(Path(__file__).parents[2] / "kernels" / "conftest.py"))
    folder, max_tokens = Path(sys.argv[1]), int(sys.argv[2])
    prompts = json.load(sys.stdin)
    options = RunnerOptions(
        model_dir=folder,
        device="cpu",
        dtype="float32",
        ops="triton",
        compute_threads=1,
        max_num_seqs=4,
        max_num_batched_tokens=24,
        max_model_len=128,
        num_gpu_blocks_override=40,
        is_resident=True,
    )
    runner, info = build_runner(options, open_recorder=CallRecorder)
    kv = BlockManager(BlockPool(info.num_blocks, len(info.groups)), info.block_size, info.groups)
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=24,
        max_model_len=info.max_model_len,
        max_num_queued_reqs=100,
        max_num_queued_tokens=10**6,
        vocab_size=info.vocab_size,
    )
    scheduler = Scheduler(kv, limits, itertools.count().__next__)
    engine = Engine(scheduler, Unwaiting(runner), depth=2)
    kinds = ({"temperature": 0.0}, {"seed": 3, "top_p": 0.9, "frequency_penalty": 0.5})
    for i, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=max_tokens, **kinds[i % 2])
        assert scheduler.add(Submit(request_id=str(i), prompt_token_ids=prompt, sampling=sampling)) is None
    tokens: list[list[int]] = [[] for _ in prompts]
    while scheduler.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            tokens[int(output.request_id)] += output.token_ids
    json.dump(tokens, sys.stdout)


if __name__ == "__main__":
    main()
