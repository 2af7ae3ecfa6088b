"""Requests whose grammar is being compiled: they wait outside the scheduler, and leave as they came or as they should."""

import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quire_contract.load_report import LoadReport
from quire_worker.engine.grammar_desk import GrammarDesk
from quire_worker.engine.load_meter import LoadMeter
from quire_worker.engine.messages import Abort, Submit
from quire_worker.engine.stats import StatsCollector
from quire_worker.grammar.compiler import GrammarCompiler
from quire_worker.grammar.limits import GrammarLimits
from quire_worker.grammar.tokenizer import GrammarTokenizer, load_grammar_tokenizer
from quire_worker.request import SamplingParams
from quire_worker.scheduling.intake import Rejection
from quire_worker.scheduling.speeds import StepSpeeds

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
YES = 'start: "yes"'
BAD = "start: nowhere"


@pytest.fixture(scope="module")
def tokenizer() -> GrammarTokenizer:
    return load_grammar_tokenizer(DEMO, 1536)


class Desk:
    """A desk, its scheduler, and what it refused."""

    def __init__(self, rig: Any, compiler: GrammarCompiler) -> None:
        self.scheduler = rig.scheduler
        self.rig = rig
        self.desk = GrammarDesk(rig.scheduler, compiler, clock=lambda: rig.time_s)
        self.refused: list[tuple[str, Rejection]] = []

    def take(self, name: str, grammar: str, n: int = 1, **more: Any) -> Rejection | None:
        params = SamplingParams(max_tokens=4)
        return self.desk.take(
            Submit(request_id=name, prompt_token_ids=[1, 2], sampling=params, n=n, grammar=grammar, **more)
        )

    def collect(self) -> None:
        """Once something is ready."""
        assert self.desk.wake_fd is not None
        readable, _, _ = select.select([self.desk.wake_fd], [], [], 60)
        assert readable
        self.desk.collect(lambda submit, rejection: self.refused.append((submit.request_id, rejection)))

    @property
    def waiting(self) -> list[tuple[str, int]]:
        return [(choice.request_id, choice.index) for choice in self.scheduler.queue]


@pytest.fixture
def make_desk(rig: Any, tokenizer: GrammarTokenizer) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(limits: GrammarLimits | None = None, **options: Any) -> Desk:
        made.append(Desk(rig(**options), GrammarCompiler(DEMO, tokenizer, limits or GrammarLimits(num_threads=1))))
        return made[-1]

    yield make
    for desk in made:
        desk.desk.close()


def test_a_request_comes_to_the_scheduler_when_its_grammar_is_ready_and_the_next_one_at_once(make_desk: Any) -> None:
    desk = make_desk()

    first = desk.take("a", YES, n=2)
    before = desk.scheduler.num_waiting
    desk.collect()
    after = desk.scheduler.num_waiting
    second = desk.take("b", YES)

    assert (first, before, after, second) == (None, 0, 2, None)
    assert desk.waiting == [("a", 0), ("b", 0)]
    assert all(choice.matcher is not None for choice in desk.scheduler.queue)
    assert desk.desk.counters.num_hits == 1
    assert len(desk.desk.counters.compile_time_s) == 1


def test_requests_that_wait_for_one_text_leave_together_in_order(make_desk: Any) -> None:
    desk = make_desk()

    for name in "abc":
        desk.take(name, YES)
    desk.collect()

    assert desk.waiting == [("a", 0), ("b", 0), ("c", 0)]


def test_a_bad_grammar_refuses_all_that_have_it_now_and_later(make_desk: Any) -> None:
    desk = make_desk()

    desk.take("a", BAD)
    desk.take("b", BAD)
    desk.collect()
    third = desk.take("c", BAD)

    assert [(name, rejection.reason) for name, rejection in desk.refused] == [("a", "grammar"), ("b", "grammar")]
    assert third == desk.refused[0][1]
    assert "nowhere" in third.message
    assert desk.desk.counters.num_refused == 3
    assert desk.scheduler.num_waiting == 0


def test_what_is_aborted_while_it_waits_never_comes(make_desk: Any) -> None:
    desk = make_desk()

    desk.take("whole", YES)
    desk.take("one", YES, n=3)
    desk.take("each", YES, n=2)
    desk.desk.abort(Abort(request_id="whole"))
    desk.desk.abort(Abort(request_id="one", choice=1))
    for choice in (0, 1):
        desk.desk.abort(Abort(request_id="each", choice=choice))
    desk.desk.abort(Abort(request_id="unknown"))
    desk.collect()

    assert desk.waiting == [("one", 0)]
    assert desk.scheduler.num_waiting == 2
    assert desk.refused == []


def test_a_full_queue_refuses_what_was_compiled_for_nothing(make_desk: Any) -> None:
    desk = make_desk(rows=1, queue=1)

    desk.take("a", YES)
    for name in "bc":
        desk.rig.submit(name, 2)
    desk.collect()

    assert [(name, rejection.reason) for name, rejection in desk.refused] == [("a", "queue_full")]


def test_requests_at_the_desk_count_in_the_bounds_of_the_queue(make_desk: Any) -> None:
    by_number, by_tokens = make_desk(rows=1, queue=1), make_desk(queue_tokens=5)

    numbers = [by_number.take(name, YES) for name in "abc"]
    tokens = [by_tokens.take(name, YES) for name in "abc"]

    assert [refused and refused.reason for refused in numbers] == [None, None, "queue_full"]
    assert [refused and refused.reason for refused in tokens] == [None, None, "queue_full"]
    assert by_number.desk.num_waiting == 2


def test_requests_at_the_desk_are_told_as_waiting_until_they_are_handed_on(make_desk: Any) -> None:
    desk = make_desk()
    stats = StatsCollector(desk.scheduler, 100, desk.desk)
    template = LoadReport(
        pod="p",
        model="m",
        epoch="e",
        ts=0.0,
        kv_seq=0,
        running=0,
        waiting=0,
        free_blocks=0,
        total_blocks=99,
        uncached_tokens=0,
    )
    meter = LoadMeter(desk.scheduler, StepSpeeds(), template, desk.desk)
    desk.rig.submit("plain", 5)
    desk.take("a", YES, n=3)
    desk.desk.abort(Abort(request_id="a", choice=1))

    at_desk, told = stats.take(), meter.report(1.0, draining=False)
    desk.collect()
    handed_on, told_then = stats.take(), meter.report(2.0, draining=False)

    assert (at_desk.num_at_desk, at_desk.num_waiting) == (2, 1)
    assert (told.waiting, told.uncached_tokens) == (3, 11)
    assert (handed_on.num_at_desk, handed_on.num_waiting) == (0, 3)
    assert told_then.waiting == 3


def test_the_time_of_a_request_runs_while_its_grammar_is_compiled(make_desk: Any) -> None:
    desk = make_desk()
    desk.take("late", YES, n=3, timeout_s=2.0)
    desk.take("impatient", YES, queue_timeout_s=1.0)
    desk.take("patient", YES, timeout_s=9.0)
    desk.desk.abort(Abort(request_id="late", choice=1))
    waits_s = [desk.desk.wait_s]

    desk.rig.time_s = 1.0
    first = desk.desk.expire()
    waits_s.append(desk.desk.wait_s)
    desk.rig.time_s = 2.0
    second = desk.desk.expire()
    desk.collect()

    assert waits_s == [1.0, 1.0]
    assert [(o.request_id, o.choice, o.finish_reason, o.error) for o in first + second] == [
        ("impatient", 0, "queue_timeout", "waiting"),
        ("late", 0, "deadline", "waiting"),
        ("late", 2, "deadline", "waiting"),
    ]
    assert desk.waiting == [("patient", 0)]


def test_what_was_spent_at_the_desk_is_gone_in_the_queue(make_desk: Any) -> None:
    desk = make_desk()
    desk.take("a", YES, timeout_s=5.0)
    desk.rig.time_s = 4.0
    desk.collect()

    desk.rig.time_s = 4.9
    before = desk.scheduler.expire()
    desk.rig.time_s = 5.0
    after = desk.scheduler.expire()

    assert before == []
    assert [(o.request_id, o.finish_reason) for o in after] == [("a", "deadline")]


def test_too_many_grammars_at_once_are_refused_for_now(make_desk: Any) -> None:
    desk = make_desk(GrammarLimits(num_threads=1, max_waiting=1))

    desk.take("a", YES)
    refused = desk.take("b", 'start: "no"')
    twice = desk.take("a", YES)

    assert refused.reason == "queue_full"
    assert (twice.reason, "already running" in twice.message) == ("invalid", True)


def test_without_a_tokenizer_every_grammar_is_refused(rig: Any) -> None:
    desk = GrammarDesk(rig().scheduler, None, "there is no tokenizer")
    submit = Submit(request_id="a", prompt_token_ids=[1], sampling=SamplingParams(max_tokens=1), grammar=YES)

    assert desk.take(submit) == Rejection("grammar", "there is no tokenizer")
    assert desk.wake_fd is None
