"""Request ids are fit for logs and headers."""

import pytest

from quire_contract.request_id import NUM_DRAWN, new_request_id, request_id_from, request_ids


@pytest.mark.parametrize("header", ["a", "0f8c", "trace:1.2_3-4@host", "x" * 128])
def test_a_good_id_is_kept(header: str) -> None:
    assert request_id_from(header) == header


@pytest.mark.parametrize("header", [None, "", "x" * 129, "a b", "a\nb", "a\n", "é", '"', "-a", "a;b"])
def test_a_bad_id_is_replaced(header: str | None) -> None:
    made = request_id_from(header)

    assert made != header
    assert request_id_from(made) == made


def test_new_ids_differ() -> None:
    assert new_request_id() != new_request_id()


def test_ids_that_are_drawn_together_are_fit_and_all_different():
    new = request_ids()

    made = [request_id_from(None, new) for _ in range(3 * NUM_DRAWN)]

    assert len(set(made)) == 3 * NUM_DRAWN
    assert {len(one) for one in made} == {32}
    assert [request_id_from(one, new) for one in made] == made
