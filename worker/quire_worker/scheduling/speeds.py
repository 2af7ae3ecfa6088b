"""How fast steps are, smoothed over the last ones. Pure: the caller gives times."""

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
