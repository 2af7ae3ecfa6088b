"""What layers ask of an answer's headers, and add to them, before anybody has made a map of them."""

from multidict import CIMultiDict, CIMultiDictProxy

from quire_router.answer import Answer
from quire_router.passed_headers import PassedHeaders


def passed(*theirs):
    return PassedHeaders(CIMultiDictProxy(CIMultiDict(theirs)), "id", "w0", "precise")


def test_what_a_layer_adds_takes_the_place_of_the_workers_own():
    answer = Answer(status=200, headers=passed(("X-Ratelimit-Limit-Tokens", "theirs"), ("X-A", "b")), body=b"")

    answer.added_headers["x-ratelimit-limit-tokens"] = "5"

    assert isinstance(answer.untouched_headers, PassedHeaders)
    assert answer.headers.getall("x-ratelimit-limit-tokens") == ["5"]
    answer.added_headers["X-A"] = "c"
    assert answer.headers.getall("X-A") == ["c"]


def test_a_reason_is_the_workers_whether_a_map_was_made_or_not():
    said, silent = (
        Answer(status=503, headers=passed(*theirs), body=b"") for theirs in ([("X-Quire-Reason", "deadline")], [])
    )

    found = [said.reason(), silent.reason()]

    assert isinstance(silent.untouched_headers, PassedHeaders)
    assert found == [said.headers.get("x-quire-reason"), silent.headers.get("x-quire-reason")] == ["deadline", None]
