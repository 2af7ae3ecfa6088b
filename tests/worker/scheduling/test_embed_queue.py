"""Which inputs a batch takes, and what the queue says of itself."""

import pytest

from quire_worker.embedding import Embed
from quire_worker.scheduling.embed_queue import BatchItem, EmbedQueue
from quire_worker.scheduling.limits import SchedulerLimits

VOCAB_SIZE = 64


class Rig:
    """A queue and its clock."""

    def __init__(
        self, *, tokens: int = 16, rows: int = 8, longest: int = 20, requests: int = 100, queued: int = 1000
    ) -> None:
        self.time_s = 0.0
        limits = SchedulerLimits(
            max_num_seqs=rows,
            max_num_batched_tokens=tokens,
            max_model_len=longest,
            max_num_queued_reqs=requests,
            max_num_queued_tokens=queued,
            vocab_size=VOCAB_SIZE,
        )
        self.queue = EmbedQueue(limits, 4, lambda: self.time_s)

    def add(self, name: str, *lengths: int, **times: float) -> str | None:
        """A request with inputs of these lengths; why it was refused."""
        rejection = self.queue.add(Embed(request_id=name, inputs=[[1] * length for length in lengths], **times))
        return None if rejection is None else rejection.reason

    def batch(self) -> list[tuple[str, int]]:
        return [(item.request_id, item.index) for item in self.queue.next_batch()]

    def batches(self) -> list[list[tuple[str, int]]]:
        found = []
        while self.queue.has_work:
            found.append(self.batch())
        return found


def test_requests_take_turns_and_the_next_batch_goes_on_where_this_one_stopped() -> None:
    rig = Rig(tokens=4, rows=8)
    rig.add("long", *[1] * 7)
    rig.add("short", 1, 1)
    rig.add("single", 1)

    first, second, third = rig.batches()

    assert first == [("long", 0), ("short", 0), ("single", 0), ("long", 1)]
    assert second == [("short", 1), ("long", 2), ("long", 3), ("long", 4)]
    assert third == [("long", 5), ("long", 6)]


def test_one_input_waits_for_no_more_than_the_batch_before_however_much_is_queued() -> None:
    rig = Rig(tokens=8)
    for name in "abc":
        rig.add(name, *[2] * 50)
    rig.batch()
    rig.add("late", 2)

    assert ("late", 0) in rig.batch() + rig.batch()


def test_an_input_longer_than_the_budget_is_computed_alone() -> None:
    rig = Rig(tokens=8, longest=20)
    rig.add("a", 3, 15, 3)

    assert rig.batches() == [[("a", 0)], [("a", 1)], [("a", 2)]]


def test_an_input_that_does_not_fit_comes_first_in_the_next_batch() -> None:
    rig = Rig(tokens=8)
    rig.add("a", 6)
    rig.add("b", 6)
    rig.add("c", 2)

    assert rig.batches() == [[("a", 0)], [("b", 0), ("c", 0)]]


def test_a_batch_has_no_more_rows_than_allowed() -> None:
    rig = Rig(tokens=100, rows=3)
    rig.add("a", *[1] * 7)

    assert [len(batch) for batch in rig.batches()] == [3, 3, 1]


def test_an_aborted_request_leaves_and_its_tokens_with_it() -> None:
    rig = Rig(tokens=4)
    rig.add("a", 2, 2, 2)
    rig.add("b", 3)
    rig.batch()

    rig.queue.abort("a")
    rig.queue.abort("unknown")

    assert rig.queue.num_uncached_tokens == 3
    assert rig.batches() == [[("b", 0)]]
    assert rig.queue.num_uncached_tokens == 0


def test_the_counts_tell_what_comes_next_and_what_waits() -> None:
    rig = Rig(tokens=4)
    rig.add("a", 2)
    rig.add("b", 2)
    rig.add("c", 2, 2)

    before = (rig.queue.num_running, rig.queue.num_waiting, rig.queue.num_uncached_tokens)
    rig.batch()
    between = (rig.queue.num_running, rig.queue.num_waiting, rig.queue.num_uncached_tokens)
    rig.batches()

    assert before == (2, 1, 8)
    assert between == (1, 0, 4)
    assert (rig.queue.num_running, rig.queue.num_waiting, rig.queue.num_uncached_tokens) == (0, 0, 0)


def test_prompt_tokens_and_waiting_times_are_counted_once_a_request() -> None:
    rig = Rig(tokens=4)
    rig.add("a", 2, 2, 2)
    rig.time_s = 1.5

    rig.batches()

    assert rig.queue.counters.num_prompt_tokens == 6
    assert rig.queue.counters.queue_time_s == [1.5]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([], "invalid"),
        ([[1], []], "invalid"),
        ([[VOCAB_SIZE]], "invalid"),
        ([[-1]], "invalid"),
        ([[1] * 21], "too_long"),
    ],
)
def test_inputs_that_cannot_be_computed_are_refused(inputs: list[list[int]], reason: str) -> None:
    rig = Rig(longest=20)

    rejection = rig.queue.add(Embed(request_id="a", inputs=inputs))

    assert rejection is not None
    assert rejection.reason == reason
    assert not rig.queue.has_work


def test_the_queue_is_bounded_in_requests_and_in_tokens_but_an_empty_one_takes_anything() -> None:
    by_requests, by_tokens = Rig(requests=2), Rig(queued=10)

    assert [by_requests.add(name, 1) for name in "abc"] == [None, None, "queue_full"]
    assert [by_tokens.add("a", *[5] * 4), by_tokens.add("b", 1)] == [None, "queue_full"]
    by_tokens.batches()
    assert by_tokens.add("b", 1) is None


def test_an_id_that_is_running_is_refused() -> None:
    rig = Rig()
    rig.add("a", 1)

    assert rig.add("a", 1) == "invalid"


def test_inputs_carry_what_the_request_asked_for() -> None:
    rig = Rig()
    rig.queue.add(Embed(request_id="a", inputs=[[1, 2], [3]], second_starts=[1, 1], dimensions=8, normalises=False))

    items: list[BatchItem] = rig.queue.next_batch()

    assert [(list(i.input.token_ids), i.input.second_start) for i in items] == [([1, 2], 1), ([3], 1)]
    assert {(i.input.dimensions, i.input.normalises) for i in items} == {(8, False)}


def test_a_request_that_is_in_no_batch_in_time_is_never_computed_and_a_deadline_ends_any() -> None:
    rig = Rig(tokens=4)
    rig.add("begun", *[2] * 9, queue_timeout_s=1.0, timeout_s=5.0)
    rig.add("late", 4, 4, queue_timeout_s=1.0)
    rig.add("patient", 1, timeout_s=9.0)
    first = rig.batch()
    rig.time_s = 1.0
    late = rig.queue.expire()
    second = rig.batch()
    rig.time_s = 5.0

    ended = rig.queue.expire()

    assert (first, second) == ([("begun", 0)], [("patient", 0), ("begun", 1)])
    assert [(o.request_id, o.choice, o.finish_reason, o.error) for o in late] == [
        ("late", 0, "queue_timeout", "waiting"),
        ("late", 1, "queue_timeout", "waiting"),
    ]
    assert {(o.request_id, o.finish_reason, o.error) for o in ended} == {("begun", "deadline", "running")}
    assert [o.choice for o in ended] == list(range(2, 9))
    assert (rig.queue.has_work, rig.queue.num_uncached_tokens) == (False, 0)


def test_the_time_of_a_request_that_is_gone_is_not_its_successors() -> None:
    rig = Rig(tokens=4)
    rig.add("a", 4, timeout_s=1.0)
    rig.queue.abort("a")
    rig.add("a", 4)
    rig.time_s = 1.0

    assert rig.queue.expire() == []
    assert rig.batch() == [("a", 0)]
