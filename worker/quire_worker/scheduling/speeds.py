"""How fast steps are, smoothed over the last ones. Pure: the caller gives times."""

from quire_worker.scheduling.step_cost import StepCosts

_SMOOTHING = 0.1
"""Weight of the newest step: about the last ten count."""
LOOK_EVERY = 32
"""Steps with prompts in a row after which one without is wanted. It costs prompts a hundredth of their speed."""


class StepSpeeds:
    """Prefill speed and decode step time, 0.0 until measured, and the costs that steps are made of."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        """Of steps that mostly prefill, all their tokens and all their time: what prompts get while others decode."""
        self.decode_step_s = 0.0
        """Of a step that only decodes, with as many rows as there have been of late."""
        self.costs = StepCosts()
        self._num_mixed = LOOK_EVERY

    @property
    def wants_decoding(self) -> bool:
        """Whether it is long since a step only decoded: among steps that are all alike nobody can tell what each part of them costs."""
        return self._num_mixed >= LOOK_EVERY

    def add(self, num_tokens: int, num_rows: int, time_s: float, num_steps: int = 1) -> None:
        """`num_steps` steps of `num_tokens` tokens in `num_rows` rows took `time_s` each. Steps that mostly prefill tell one speed; steps
        that only decode tell the other, and where there are none the costs do."""
        if num_tokens < max(1, num_rows):
            return  # a call that committed no step
        self._num_mixed = 0 if num_tokens == num_rows else self._num_mixed + num_steps
        if time_s <= 0:
            return
        weight = _SMOOTHING if num_steps == 1 else 1.0 - (1.0 - _SMOOTHING) ** num_steps
        self.costs.add(num_rows, num_tokens - num_rows, time_s, num_steps)
        if num_tokens == num_rows:
            self.decode_step_s = _smooth(self.decode_step_s, time_s, weight)
        elif self.decode_step_s and num_rows > 1:
            self.decode_step_s = _smooth(self.decode_step_s, self.costs.step_s(num_rows), weight)
        if num_tokens >= 2 * num_rows:
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, num_tokens / time_s, weight)


def _smooth(old: float, new: float, weight: float) -> float:
    return new if old == 0.0 else old + weight * (new - old)
