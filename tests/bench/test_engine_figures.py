"""The arithmetic of bench/engine.py and bench/serving_peer.py: what counts as decoding, which rounds count, what a client saw."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_tokenizer
from report import Results, Round, speed_table
from rows import MAX_MODEL_LEN, ROWS
from serving_peer import Stream, digest
from sides.decode_clock import DecodeClock
from tokenizers import Tokenizer


def ticks(*seconds: float) -> Iterator[float]:
    yield from seconds


def test_decoding_is_timed_from_when_all_rows_have_a_token_until_one_is_done() -> None:
    clock = DecodeClock(2, 4, ticks(1.0, 5.0, 6.0, 7.5, 9.0).__next__)

    for new in ({0: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}, {1: 1}):
        clock.saw(new)

    assert (clock.seconds, clock.tokens) == (2.5, 4)


def test_ratios_pair_the_sides_of_one_round_and_disturbed_rounds_are_dropped() -> None:
    results, row = Results(sides=["quire", "vllm", "linear"]), ROWS["8"]
    results.begin(row)
    for ours, theirs, others in ((300.0, 100.0, 0.02), (10.0, 100.0, 0.9), (200.0, 100.0, 0.04), (50.0, 20.0, 0.03)):
        results.rounds[row.name].append(Round({"quire": ours, "vllm": theirs, "linear": 2 * ours}, others))

    assert results.num_quiet(row, 0.15) == 3
    results.keep_quietest(row, 3)

    assert sorted(results.ratios(row, "quire", "vllm")) == [2.0, 2.5, 3.0]
    assert "**2.50x** (2.00-3.00) | 50 % (50-50)" in speed_table(results)


def test_every_row_fits_the_length_that_all_sides_are_given() -> None:
    assert all(row.prompt_tokens + row.output_tokens < MAX_MODEL_LEN for row in ROWS.values())


def test_a_clients_gaps_are_between_events_with_text_whatever_the_chunks() -> None:
    text = b'data: {"choices": [{"text": "a"}]}\n\n'
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n'
    stream = Stream(10.0, [(10.5, text[:9]), (11.0, text[9:]), (11.25, text + text[:3]), (12.0, text[3:] + usage)])

    seen = digest([stream], num_tokens=3, wall_s=2.0)

    assert (seen.first_token_p50_s, seen.gap_p50_s, seen.gap_p99_s) == (1.0, 0.75, 0.75)
    assert (seen.output_tokens_per_s, seen.tokens_per_event) == (1.5, 1.0)


def test_a_client_notices_tokens_that_are_missing() -> None:
    stream = Stream(0.0, [(1.0, b'data: {"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}\n\n')])

    with pytest.raises(AssertionError, match="1 tokens came, not 2"):
        digest([stream], num_tokens=2, wall_s=1.0)


def test_every_token_of_the_benchmarks_tokenizer_shows_as_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 16_000)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    assert tokenizer.get_vocab_size() == 16_000
    assert all(tokenizer.decode([token]).isascii() and tokenizer.decode([token]) for token in range(3, 16_000))
    assert tokenizer.decode(tokenizer.encode("hello there").ids) == "hello there"
