"""What is expected of an output, from those that ended."""

import pytest

from quire_worker.scheduling.output_lengths import OutputLengths


def test_an_output_is_never_expected_to_pass_its_limit() -> None:
    lengths = OutputLengths()

    assert 4.8 < lengths.expected_more(0, 5) <= 5
    assert lengths.expected_more(7, 0) == 0


def test_what_was_seen_takes_the_place_of_the_guess() -> None:
    lengths = OutputLengths()
    for _ in range(200):
        lengths.observe(20, of_itself=True)

    assert lengths.expected_more(0, 10_000) == pytest.approx(22, abs=6)


def test_outputs_cut_off_by_their_limit_do_not_pass_for_short_ones() -> None:
    lengths = OutputLengths()
    for _ in range(200):
        lengths.observe(16, of_itself=False)

    assert lengths.expected_more(0, 10_000) > 200


def test_an_output_that_outlived_the_short_ones_is_expected_to_be_a_long_one() -> None:
    lengths = OutputLengths()
    for _ in range(100):
        lengths.observe(10, of_itself=True)
        lengths.observe(1000, of_itself=True)

    fresh, survivor, late = (lengths.expected_more(generated, 10_000) for generated in (0, 20, 980))

    assert fresh < survivor
    assert survivor == pytest.approx(1000, rel=0.3)
    assert late < fresh


def test_old_outputs_are_forgotten() -> None:
    lengths = OutputLengths()
    for _ in range(5000):
        lengths.observe(1000, of_itself=True)
    for _ in range(5000):
        lengths.observe(10, of_itself=True)

    assert lengths.expected_more(0, 10_000) < 20


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 1000, 2**22])
def test_any_length_can_be_observed(length: int) -> None:
    lengths = OutputLengths()

    lengths.observe(length, of_itself=True)

    assert 0 < lengths.expected_more(length, 10) <= 10
