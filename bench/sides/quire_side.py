"""Our engine, in-process, as a side of bench/engine.py: MODEL_DIR THREADS."""

import sys
import time
from pathlib import Path

from protocol import serve

from quire_worker.engine.engine import Engine
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.limits import SchedulerLimits
from quire_worker.scheduling.scheduler import Scheduler

MAX_BATCHED_TOKENS = 2048


def main() -> None:
    options = RunnerOptions(
        model_dir=Path(sys.argv[1]),
        dtype="bfloat16",
        compute_threads=int(sys.argv[2]),
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        kv_cache_memory_bytes=4 << 30,
    )
    runner, info = build_runner(options)
    kv = BlockManager(
        BlockPool(info.num_blocks, len(info.groups)), info.block_size, info.groups, enable_prefix_caching=False
    )
    limits = SchedulerLimits(
        max_num_seqs=256,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        max_model_len=info.max_model_len,
        max_num_queued_reqs=1024,
        max_num_queued_tokens=1 << 22,
        vocab_size=info.vocab_size,
    )
    scheduler = Scheduler(kv, limits, time.monotonic)
    engine = Engine(scheduler, runner)

    def generate(prompts: list[list[int]], max_tokens: int) -> list[int]:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        for i, prompt in enumerate(prompts):
            rejection = scheduler.add(Submit(request_id=str(i), prompt_token_ids=prompt, sampling=sampling))
            assert rejection is None, rejection
        counts = [0] * len(prompts)
        while scheduler.has_work:
            for output in engine.step():
                counts[int(output.request_id)] += len(output.token_ids)
        return counts

    serve(generate)


if __name__ == "__main__":
    main()
