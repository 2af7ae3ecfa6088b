"""A choice that was begun by another engine goes on as if this one had preempted it."""

from typing import Any

import pytest

from quire_worker.request import RepetitionDetection, SamplingParams, Submit

PROMPT = [5, 9, 2, 7, 1, 8, 3, 3, 6]


def going_on(name: str, output: list[int], **sampling: Any) -> Submit:
    params = SamplingParams(**{"max_tokens": 24, "temperature": 0.0, **sampling})
    return Submit(request_id=name, prompt_token_ids=PROMPT, sampling=params, output_token_ids=output)


def produced(rig: Any, output: list[int], **sampling: Any) -> tuple[list[int], str | None]:
    """The tokens behind `output`, and how the choice ends."""
    assert rig.scheduler.add(going_on("a", output, **sampling)) is None
    tokens = rig.run().get(("a", 0), [])
    assert rig.num_used_blocks == 0
    return tokens, rig.ends["a", 0].finish_reason


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 1.0, "seed": 2**64 - 1}, {"min_tokens": 9, "eos_token_ids": tuple(range(0, 64, 3))}],
    ids=["greedy", "seeded", "least tokens"],
)
def test_after_any_token_the_rest_is_what_it_would_have_been(rig: Any, depth: int, sampling: dict[str, Any]) -> None:
    whole, reason = produced(rig(depth=depth), [], **sampling)

    for cut in range(1, len(whole)):
        rest = produced(rig(depth=depth, budget=8), whole[:cut], **sampling)

        assert rest == (whole[cut:], reason)


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({"max_tokens": 6}, "length"),
        ({"stop_token_ids": (4,)}, "stop"),
        (
            {"repetition_detection": RepetitionDetection(max_pattern_size=1, min_pattern_size=1, min_count=3)},
            "repetition",
        ),
    ],
)
def test_one_whose_tokens_end_it_is_told_so_and_computes_nothing(
    rig: Any, sampling: dict[str, Any], reason: str
) -> None:
    r = rig()
    tokens, told = produced(r, [1, 2, 9, 4, 4, 4], **sampling)

    assert (tokens, told) == ([], reason)
    assert r.scheduler.counters.num_steps == 0


def test_what_it_brings_is_found_in_the_cache_and_only_the_prompt_is_told_as_cached(rig: Any) -> None:
    r = rig()
    whole, _ = produced(r, [])

    r.scheduler.add(going_on("b", whole[:20]))
    outputs = r.step()

    assert outputs[0].num_cached_tokens == len(PROMPT)
    assert r.engine.last_step_tokens < len(whole)


def test_one_that_is_aborted_before_anybody_looked_at_it_leaves_nothing(rig: Any) -> None:
    r = rig()

    r.scheduler.add(going_on("a", [1, 2], max_tokens=2))
    r.scheduler.abort("a")

    assert r.step() == []
    assert not r.scheduler.has_work


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output_token_ids": [1, 64]}, "output: token ids"),
        ({"output_token_ids": [-1]}, "output: token ids"),
        ({"output_token_ids": [1] * 25}, "output: has 25 tokens, but the choice may have 24"),
        ({"output_token_ids": [1], "n": 2}, "n: a choice"),
    ],
)
def test_what_cannot_have_been_begun_is_refused(rig: Any, changes: dict[str, Any], words: str) -> None:
    params = SamplingParams(max_tokens=24)
    submit = Submit(**{"request_id": "a", "prompt_token_ids": PROMPT, "sampling": params, **changes})

    rejection = rig().scheduler.add(submit)

    assert rejection is not None
    assert (rejection.reason, rejection.message.startswith(words)) == ("invalid", True)
