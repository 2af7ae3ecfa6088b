"""What a step takes, as time = fixed + rows * per row + further tokens * per token, fitted to the steps as they come.

A row computes at least one token; its further ones are a prompt's. Averages of steps that only decode and of steps that mostly prefill
would tell the same while both kinds come. A saturated engine has neither: every step is a mixture, and an average that is not renewed
remembers the quiet time before. So every step is one measurement of all three costs, taken in by a Kalman filter whose costs drift (Kalman,
"A new approach to linear filtering and prediction problems", 1960): what a step cannot tell apart stays as it was and becomes less certain,
and the next step that can tell moves it. Longer contexts, another clock of the processor and neighbours on its cores are drift.

Pure: the caller gives times. Knows no requests.
"""

_NOISE = 0.1
"""Of a step's time: what it differs by from that of one alike."""
_DRIFT = 0.02
"""Of a step's time: what each cost may change it by from one step to the next."""
_MOST_SURPRISE = 2.0
"""A step that took longer than so many times what was expected counts as no longer: collectors, neighbours and page faults are not its
cost. A lasting change is believed within some steps, as the expectation grows with each."""
_BELIEVES_AFTER = 8
"""Steps until anything is expected."""
_TRUSTED = 2
"""Times the tokens of the largest step lately seen up to which the fit is believed: a device that is idle beside few tokens charges nothing
for them, and much for many."""
_FORGETTING = 0.99
_ROWS_APART = 8
"""Rows that a step must have to tell as much of a row's cost as of what is fixed: of few rows most is taken for fixed. What more rows cost
is then underestimated at first, which makes steps too short instead of too long."""


class StepCosts:
    """The three costs, in seconds, never negative; 0.0 until measured."""

    __slots__ = ("_aa", "_ab", "_ac", "_bb", "_bc", "_cc", "_largest", "_num_seen", "fixed_s", "row_s", "token_s")

    def __init__(self) -> None:
        self.fixed_s = self.row_s = self.token_s = 0.0
        # The covariance of the three, a for fixed_s, b for row_s, c for token_s.
        self._aa = self._ab = self._ac = self._bb = self._bc = self._cc = 0.0
        self._num_seen = 0
        self._largest = 0.0

    def step_s(self, num_rows: int, num_more: int = 0) -> float:
        """What a step takes with so many rows and tokens beyond one a row."""
        return self.fixed_s + num_rows * self.row_s + num_more * self.token_s

    def most_tokens(self, num_rows: int, slowdown: float) -> int | None:
        """Tokens beyond one a row with which a step of so many rows takes `slowdown` times as long; None: no such step was seen yet."""
        if not self._largest:
            return None
        most = _TRUSTED * self._largest
        spare_s = (slowdown - 1) * self.step_s(num_rows)
        return int(most if spare_s >= most * self.token_s else spare_s / self.token_s)

    def add(self, num_rows: int, num_more: int, time_s: float, num_steps: int = 1) -> None:
        """`num_steps` steps of so many rows, and tokens beyond one a row, took `time_s` each."""
        if self._num_seen == 0:
            self._begin(num_rows, num_more, time_s)
        elif self._num_seen >= _BELIEVES_AFTER:
            time_s = min(time_s, _MOST_SURPRISE * max(self.step_s(num_rows, num_more), 1e-6))
        self._num_seen += num_steps
        self._largest = max(float(num_more), self._largest * _FORGETTING**num_steps)
        self._drift(num_rows, num_more, time_s, num_steps)
        self._measure(num_rows, num_more, time_s, num_steps)
        self._bound()

    def _begin(self, num_rows: int, num_more: int, time_s: float) -> None:
        """Each cost alone may explain all of the first step."""
        self._aa = time_s**2
        self._bb = (time_s / (num_rows + _ROWS_APART)) ** 2
        self._cc = (time_s / max(1, num_more)) ** 2

    def _drift(self, num_rows: int, num_more: int, time_s: float, num_steps: int) -> None:
        """Each cost that this step has becomes less certain, but never less than that it might explain the whole step.

        Beside prompts, what decoding takes drifts by its own part of the step: else a few long steps would make it so uncertain that their
        noise, which is many times a decoding step's time, moves it."""
        whole = time_s * time_s
        grown = num_steps * (_DRIFT * time_s) ** 2
        decoding_s = min(time_s, _MOST_SURPRISE * self.step_s(num_rows)) if num_more else time_s
        of_decoding = num_steps * (_DRIFT * decoding_s) ** 2
        self._aa = min(self._aa + of_decoding, max(self._aa, whole))
        if num_rows:
            apart = (num_rows + _ROWS_APART) ** 2
            self._bb = min(self._bb + of_decoding / apart, max(self._bb, whole / apart))
        if num_more:
            self._cc = min(self._cc + grown / num_more**2, max(self._cc, whole / num_more**2))

    def _bound(self) -> None:
        """No cost is negative: one that came out so is 0, and the others are what they are most likely then (Simon, "Kalman filtering with
        state constraints", 2010). Cutting it off alone would leave them wrong, and certain."""
        if self.fixed_s < 0 < self._aa:
            by = self.fixed_s / self._aa
            self.row_s -= by * self._ab
            self.token_s -= by * self._ac
        if self.row_s < 0 < self._bb:
            by = self.row_s / self._bb
            self.fixed_s -= by * self._ab
            self.token_s -= by * self._bc
        if self.token_s < 0 < self._cc:
            by = self.token_s / self._cc
            self.fixed_s -= by * self._ac
            self.row_s -= by * self._bc
        self.fixed_s, self.row_s, self.token_s = max(0.0, self.fixed_s), max(0.0, self.row_s), max(0.0, self.token_s)

    def _measure(self, num_rows: int, num_more: int, time_s: float, num_steps: int) -> None:
        a = self._aa + num_rows * self._ab + num_more * self._ac
        b = self._ab + num_rows * self._bb + num_more * self._bc
        c = self._ac + num_rows * self._bc + num_more * self._cc
        spread = a + num_rows * b + num_more * c + (_NOISE * time_s) ** 2 / num_steps
        wrong_s = (time_s - self.step_s(num_rows, num_more)) / spread
        self.fixed_s += a * wrong_s
        self.row_s += b * wrong_s
        self.token_s += c * wrong_s
        self._aa -= a * a / spread
        self._ab -= a * b / spread
        self._ac -= a * c / spread
        self._bb -= b * b / spread
        self._bc -= b * c / spread
        self._cc -= c * c / spread
