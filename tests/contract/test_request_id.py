"""Request ids are fit for logs and headers."""

import pytest

from quire_contract.request_id import new_request_id, request_id_from


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
