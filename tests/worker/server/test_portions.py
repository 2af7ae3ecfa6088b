"""Large answers: written in portions, and never gathered beyond a bound."""

from typing import Any

import aiohttp
import pytest

from quire_worker.request import TokenLogprobs
from quire_worker.server.choice import Piece, TokenEntry
from quire_worker.server.portions import PORTION, num_logprobs, portions


def piece(num_tokens: int, k: int) -> Piece:
    logprobs = TokenLogprobs(logprob=-1.0, rank=1, top_ids=(1,) * k, top_logprobs=(-1.0,) * k)
    entries = [TokenEntry(1, logprobs, 0)] * num_tokens
    return Piece(text="a", token_ids=[1] * num_tokens, entries=entries, finish_reason=None, stop_reason=None)


def test_log_probabilities_are_counted_with_those_beside_them() -> None:
    assert num_logprobs(piece(3, 20)) == 63
    assert num_logprobs(piece(0, 0)) == 0


@pytest.mark.parametrize("k", [0, 20])
def test_portions_hold_all_pieces_in_order_and_no_more_than_a_portion_each(k: int) -> None:
    arrived = [(index, piece(1, k)) for index in range(5000)]

    found = list(portions(arrived))

    assert [index for portion in found for index, _ in portion] == list(range(5000))
    assert {sum(1 + num_logprobs(each) for _, each in portion) <= PORTION for portion in found} == {True}
    assert len(found) <= 5000 * (k + 2) // (PORTION - k - 2) + 1


def test_a_piece_larger_than_a_portion_is_one_alone() -> None:
    arrived = [(0, piece(1, 0)), (1, piece(200, 20)), (2, piece(1, 0))]

    assert [[index for index, _ in portion] for portion in portions(arrived)] == [[0], [1], [2]]


async def test_an_answer_of_too_many_log_probabilities_is_refused_unless_it_is_streamed(
    http: aiohttp.ClientSession, worker: Any
) -> None:
    body = {
        "model": "tiny",
        "prompt": ["the fox"] * 3,
        "n": 16,
        "temperature": 0,
        "max_tokens": 1100,
        "ignore_eos": True,
        "logprobs": 20,
    }

    async with http.post(f"{worker.base}/v1/completions", json=body) as response:
        refusal = (await response.json())["error"]
        status = response.status

    assert (status, refusal["param"], refusal["code"]) == (400, "logprobs", "invalid_value")
    assert "stream: true" in refusal["message"]
