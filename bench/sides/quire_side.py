"""Our engine, in-process, as a side of bench/engine.py. It learns what steps take, as it does while it serves.

Nobody reads tokens as they come, as with the other sides: requests are not streamed.
"""

import gc
import time

from decode_clock import DecodeClock
from protocol import serve
from settings import Settings, parse_settings

from quire_worker.engine.config import EngineConfig
from quire_worker.engine.engine import Engine
from quire_worker.engine.process import build_scheduler, depth_of, warm_up
from quire_worker.execution.build import build_runner
from quire_worker.execution.options import RunnerOptions
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.speeds import StepSpeeds


def build_engine(settings: Settings, speeds: StepSpeeds) -> Engine:
    """As the engine process builds it, without a prefix cache. `speeds`: what steps take, told by whoever steps it."""
    config = EngineConfig(
        model_dir=str(settings.model_dir),
        served_model_names=["bench"],
        enable_prefix_caching=False,
        inbound_endpoint="",
        outbound_endpoint="",
    )
    chosen = {} if settings.quantization is None else {"quantization": settings.quantization}
    options = RunnerOptions(
        model_dir=settings.model_dir,
        dtype="bfloat16",
        compute_threads=settings.threads,
        max_model_len=settings.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_memory_bytes=settings.kv_bytes,
        **chosen,  # type: ignore[arg-type]
    )
    runner, info = build_runner(options)
    return Engine(build_scheduler(config, info, speeds), runner, depth=depth_of(config, info))


class Batch:
    """Requests on their way through the engine; a row is a prompt's place in its list."""

    def __init__(self, engine: Engine, speeds: StepSpeeds, prompts: list[list[int]], max_tokens: int) -> None:
        self._engine = engine
        self._speeds = speeds
        self.counts = [0] * len(prompts)
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        for row, prompt in enumerate(prompts):
            submit = Submit(request_id=str(row), prompt_token_ids=prompt, sampling=sampling, is_streamed=False)
            rejection = engine.scheduler.add(submit)
            assert rejection is None, rejection

    def step(self) -> dict[int, int]:
        """Tokens that each row got."""
        new: dict[int, int] = {}
        engine, started = self._engine, time.perf_counter()
        outputs = engine.step()
        self._speeds.add(engine.last_step_tokens, engine.last_step_rows, time.perf_counter() - started)
        for output in outputs:
            assert output.error is None, output.error
            row = int(output.request_id)
            new[row] = new.get(row, 0) + len(output.token_ids)
        for row, count in new.items():
            self.counts[row] += count
        return new


def main() -> None:
    speeds = StepSpeeds()
    engine = build_engine(parse_settings(), speeds)
    warm_up(engine)
    gc.collect()
    gc.freeze()

    def generate(prompts: list[list[int]], max_tokens: int) -> list[int]:
        batch = Batch(engine, speeds, prompts, max_tokens)
        while engine.scheduler.has_work:
            batch.step()
        return batch.counts

    def decode_only(prompts: list[list[int]], max_tokens: int, clock: DecodeClock) -> list[int]:
        batch = Batch(engine, speeds, prompts, max_tokens)
        while engine.scheduler.has_work:
            clock.saw(batch.step())
        return batch.counts

    serve(generate, decode_only)


if __name__ == "__main__":
    main()
