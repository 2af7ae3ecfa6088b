"""How fast steps are, smoothed over the last ones, and the load report made of that and the scheduler's counts.

Pure: the caller gives times.
"""

from quire_contract.load_report import LoadReport
from quire_worker.engine.served import ServedScheduler

_SMOOTHING = 0.1
"""Weight of the newest step: about the last ten count."""


class StepSpeeds:
    """Prefill speed and decode step time, 0.0 until measured."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_step_s = 0.0

    def add(self, num_tokens: int, num_rows: int, time_s: float) -> None:
        """A step of `num_tokens` tokens in `num_rows` rows took `time_s`. Steps that mostly prefill tell one speed, steps that only
        decode the other."""
        if time_s <= 0:
            return
        if num_tokens == num_rows:
            self.decode_step_s = _smooth(self.decode_step_s, time_s)
        elif num_tokens >= 2 * num_rows:
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, num_tokens / time_s)


def _smooth(old: float, new: float) -> float:
    return new if old == 0.0 else old + _SMOOTHING * (new - old)


class LoadMeter:
    """Makes load reports of one worker."""

    def __init__(self, scheduler: ServedScheduler, speeds: StepSpeeds, template: LoadReport) -> None:
        """`template` has the fields that never change."""
        self._scheduler = scheduler
        self._speeds = speeds
        self._template = template

    def report(self, now_s: float, *, draining: bool) -> LoadReport:
        """The state at `now_s` (Unix time). The publisher fills in kv_seq."""
        scheduler, fixed = self._scheduler, self._template
        return LoadReport(
            pod=fixed.pod,
            model=fixed.model,
            epoch=fixed.epoch,
            ts=now_s,
            kv_seq=0,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            free_blocks=scheduler.num_free_blocks,
            total_blocks=fixed.total_blocks,
            uncached_tokens=scheduler.num_uncached_tokens,
            block_size=fixed.block_size,
            max_num_seqs=fixed.max_num_seqs,
            draining=draining,
            prefill_tokens_per_s=self._speeds.prefill_tokens_per_s,
            decode_step_s=self._speeds.decode_step_s,
        )
