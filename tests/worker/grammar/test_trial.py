"""The process in which grammars are tried, where the machine or bad luck is to blame."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from quire_worker.grammar.limits import GrammarLimits
from quire_worker.grammar.trial import Trial, TrialBrokenError

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
GOOD = 'start: "yes" | "no"'


def process_of_trial(before: set[int]) -> int:
    """The only new child."""
    (pid,) = {child.pid for child in psutil.Process().children()} - before
    return pid


def test_a_process_that_did_not_get_to_compute_says_nothing_about_the_grammar_and_the_next_try_does() -> None:
    before = {child.pid for child in psutil.Process().children()}
    trial = Trial(DEMO, 1600, GrammarLimits(compile_time_s=4.0))
    assert trial.refusal_of(GOOD) is None

    os.kill(process_of_trial(before), signal.SIGSTOP)
    with pytest.raises(TrialBrokenError, match="too busy"):
        trial.refusal_of(GOOD)

    assert trial.refusal_of(GOOD) is None
    trial.close()
