"""The load report: the scheduler's counts, and how fast steps are.

Pure: the caller gives times.
"""

from quire_contract.load_report import LoadReport
from quire_worker.engine.grammar_desk import GrammarDesk
from quire_worker.engine.served import ServedScheduler
from quire_worker.scheduling.speeds import StepSpeeds


class LoadMeter:
    """Makes load reports of one worker."""

    def __init__(
        self, scheduler: ServedScheduler, speeds: StepSpeeds, template: LoadReport, desk: GrammarDesk | None = None
    ) -> None:
        """`template` has the fields that never change. What waits at the `desk` for its grammar counts as waiting."""
        self._scheduler = scheduler
        self._speeds = speeds
        self._template = template
        self._desk = desk

    def report(self, now_s: float, *, draining: bool, asleep: bool = False) -> LoadReport:
        """The state at `now_s` (Unix time). The publisher fills in kv_seq."""
        scheduler, fixed, desk = self._scheduler, self._template, self._desk
        return LoadReport(
            pod=fixed.pod,
            model=fixed.model,
            epoch=fixed.epoch,
            ts=now_s,
            kv_seq=0,
            running=scheduler.num_running,
            waiting=scheduler.num_waiting + (0 if desk is None else desk.num_waiting),
            free_blocks=scheduler.num_free_blocks,
            total_blocks=fixed.total_blocks,
            uncached_tokens=scheduler.num_uncached_tokens + (0 if desk is None else desk.num_tokens),
            block_size=fixed.block_size,
            max_num_seqs=fixed.max_num_seqs,
            draining=draining,
            prefill_tokens_per_s=self._speeds.prefill_tokens_per_s,
            decode_step_s=self._speeds.decode_step_s,
            asleep=asleep,
        )
