"""What only some steps bring: log-probabilities of prompts, rows that failed, outputs that go in circles."""

from array import array

import msgspec
import pytest

from quire_worker.request import FAILED_NOT_FINITE, RepetitionDetection
from quire_worker.scheduling.choice import Choice
from quire_worker.scheduling.repetition import is_repeating


def positions(parts):
    """Of the scored tokens, in the order in which they are told."""
    return [part.first + i for part in parts for i in range(part.num_tokens)]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("blocks", [200, 14])
def test_each_prompt_token_but_the_first_is_scored_once_and_told_with_the_first_token(rig, depth, blocks):
    engine = rig(blocks=blocks, budget=11, depth=depth, max_model_len=48)
    lengths = [1, 2, 30, 17, 9, 24]
    for i, length in enumerate(lengths):
        engine.submit(f"r{i}", length, n=1 + i % 3, max_tokens=14, prompt_logprobs=2)

    told, first_tokens = {}, set()
    while engine.scheduler.has_work:
        for output in engine.step():
            key = (output.request_id, output.choice)
            if output.prompt_logprobs is not None:
                assert key not in told and key not in first_tokens
                told[key] = output.prompt_logprobs
            first_tokens.add(key)

    assert set(told) == {(f"r{i}", 0) for i in range(len(lengths))}
    for i, length in enumerate(lengths):
        parts = told[f"r{i}", 0]
        assert positions(parts) == list(range(1, length))
        assert sum((array("i", part.top_ids) for part in parts), array("i"))[::2].tolist() == [
            (sum(f"r{i}".encode()) * 13 + 7 * j) % 64 for j in range(1, length)
        ]
    assert (engine.scheduler.counters.num_preemptions > 0) == (blocks == 14)


def test_scored_prompts_are_no_queries_of_the_cache(rig):
    engine = rig()
    engine.submit("a", 20, prompt_logprobs=0)
    engine.run()
    engine.submit("a", 20, prompt_logprobs=0)
    engine.ends.clear()
    engine.run()

    counters = engine.scheduler.counters
    assert (counters.prefix_queries, counters.prefix_hits, counters.num_cached_tokens) == (0, 0, 0)


class Failing:
    """A runner whose rows fail from their third output on, if their prompt begins with 63."""

    def __init__(self, runner):
        self._runner = runner
        self.close = runner.close

    def launch(self, plan):
        return FailingHandle(self._runner, plan, self._runner.launch(plan))

    def sample(self, handle, masks):
        self._runner.sample(handle.inner, masks)


class FailingHandle:
    def __init__(self, runner, plan, inner):
        self.inner, self._runner = inner, runner

    def result(self):
        result = self.inner.result()
        rows = self._runner._rows
        failed = {
            row: FAILED_NOT_FINITE
            for row in result.rows
            if row in rows
            and rows[row].token_ids[0] == 63
            and len(rows[row].token_ids) - rows[row].num_prompt_tokens >= 3
        }
        return msgspec.structs.replace(result, failed=failed)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_a_failed_row_ends_alone_and_its_blocks_go_back(rig, depth, n):
    plain = rig()
    plain.submit("b", 10)
    plain.submit("c", 5, temperature=1.0)
    expected = plain.run()

    engine = rig(depth=depth, wrap=Failing)
    engine.submit("b", 10)
    engine.submit("bad", [63, 1, 2, 3, 4, 5], n=n)
    engine.submit("c", 5, temperature=1.0)
    tokens = engine.run()

    for choice in range(n):
        end = engine.ends["bad", choice]
        assert (end.finish_reason, end.error_code, end.token_ids) == ("error", FAILED_NOT_FINITE, [])
        assert len(tokens["bad", choice]) <= 2
    assert {key: tokens[key] for key in expected} == expected
    assert engine.num_used_blocks == 0
    assert engine.scheduler.counters.num_generated_tokens == sum(map(len, tokens.values()))


@pytest.mark.parametrize(
    ("output", "sizes", "min_count", "is_found"),
    [
        ("abababab", (1, 4), 4, True),
        ("abababab", (1, 4), 5, False),
        ("xaaaa", (1, 1), 4, True),
        ("xaaaa", (2, 4), 2, True),
        ("xaaaa", (3, 4), 2, False),
        ("abcabcabx", (1, 4), 2, False),
        ("abcabc", (3, 3), 2, True),
        ("abcabc", (1, 2), 2, False),
        ("a", (1, 4), 2, False),
        ("", (1, 4), 2, False),
    ],
)
def test_an_output_goes_in_circles_if_it_ends_in_a_pattern_often_enough(rig, output, sizes, min_count, is_found):
    wanted = RepetitionDetection(min_pattern_size=sizes[0], max_pattern_size=sizes[1], min_count=min_count)
    engine = rig()
    engine.submit("a", [1, 1, 1, 1], repetition_detection=wanted)
    choice: Choice = engine.scheduler._requests["a"][0]

    choice.token_ids += [ord(letter) for letter in output]

    assert is_repeating(choice, wanted) is is_found


def test_a_choice_that_goes_in_circles_ends_with_that_reason(rig):
    engine = rig()
    wanted = RepetitionDetection(min_pattern_size=1, max_pattern_size=2, min_count=3)
    engine.submit("a", 5, max_tokens=50, allowed_token_ids=(4,), repetition_detection=wanted)
    engine.submit("b", 5, max_tokens=50, allowed_token_ids=(4,), repetition_detection=wanted, min_tokens=20)
    tokens = engine.run()

    assert (tokens["a", 0], engine.ends["a", 0].finish_reason) == ([4] * 3, "repetition")
    assert (tokens["b", 0], engine.ends["b", 0].finish_reason) == ([4] * 20, "repetition")


@pytest.mark.parametrize(
    "sampling",
    [
        {"allowed_token_ids": (64,)},
        {"bad_words": ((3, -1),)},
        {"bad_words": ((),)},
        {"logprob_token_ids": (1, 99)},
        {"logprob_token_ids": (1,) * 129},
    ],
)
def test_ids_that_the_runner_could_not_look_up_are_not_taken(rig, sampling):
    rejection = rig().submit("a", 5, **sampling)

    assert rejection is not None and rejection.reason == "invalid"
    assert next(iter(sampling)) in rejection.message
