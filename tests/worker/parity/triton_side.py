"""Our engine with Triton's ops under the interpreter, on a GPU's road: resident rows, recorded decode steps, nothing that waits.

    python triton_side.py FOLDER     prompts with sampling parameters as JSON on standard input; on standard output, for each of them, its
        [OPTIONS]                    tokens, the log-probabilities of its prompt and its error code; OPTIONS: other RunnerOptions, as JSON

A process of its own, because the interpreter must be chosen, and mended as tests/kernels/conftest.py does it, before Triton's kernels are
imported.
"""

import itertools
import json
import runpy
import sys
from array import array
from pathlib import Path
from typing import Any

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


def as_tuples(value: Any) -> Any:
    """JSON's lists as the parameters have them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def main() -> None:
    runpy.run_path(str(Path(__file__).parents[2] / "kernels" / "conftest.py"))
    folder = Path(sys.argv[1])
    requests = json.load(sys.stdin)
    settings = {
        "device": "cpu",
        "dtype": "float32",
        "ops": "triton",
        "compute_threads": 1,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "max_model_len": 128,
        "num_gpu_blocks_override": 40,
        "is_resident": True,
    } | json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")
    runner, info = build_runner(RunnerOptions(model_dir=folder, **settings), open_recorder=CallRecorder)
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
    for i, (prompt, kind) in enumerate(requests):
        sampling = SamplingParams(**{name: as_tuples(value) for name, value in kind.items()})
        assert scheduler.add(Submit(request_id=str(i), prompt_token_ids=prompt, sampling=sampling)) is None
    found: list[tuple[list[int], list[float], list[str]]] = [([], [], []) for _ in requests]
    while scheduler.has_work:
        for output in engine.step():
            assert output.error is None or output.error_code, output.error
            tokens, logprobs, errors = found[int(output.request_id)]
            tokens += output.token_ids
            logprobs += [value for part in output.prompt_logprobs or [] for value in array("f", part.logprobs)]
            errors += [output.error_code] if output.error_code else []
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
