"""The shape of a body is bounded before it is decoded; what any client sends passes."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quire_contract.openai.errors import ApiError
from quire_contract.openai.structure import MAX_CONTAINERS, MAX_DEPTH, MAX_STRINGS, check_structure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\ab', max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\', max_size=4), inner, max_size=4)
    ),
    max_leaves=80,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.integers(0, MAX_DEPTH + 5))
@example({"": []}, MAX_DEPTH - 2)
def test_only_what_is_too_deep_is_refused(value: object, extra: int) -> None:
    for _ in range(extra):
        value = [value] if extra % 2 else {"a[": value}
    body = json.dumps([value, "[{" * 200]).encode()

    if depth_of(value) + 1 > MAX_DEPTH:
        with pytest.raises(ApiError, match=f"nested too deeply: more than {MAX_DEPTH}"):
            check_structure(body)
    else:
        check_structure(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 2_000_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} objects"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested too deeply"),
        (json.dumps({"messages": [{}] * (MAX_CONTAINERS + 1)}).encode(), f"more than {MAX_CONTAINERS}"),
        (json.dumps({"prompt": ["a"] * (MAX_STRINGS + 1)}).encode(), f"more than {MAX_STRINGS} strings"),
        (json.dumps({"prompt": ["\\"] * (2 * MAX_STRINGS + 1)}).encode(), f"more than {MAX_STRINGS} strings"),
    ],
)
def test_what_no_request_needs_is_named(body: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words) as refused:
        check_structure(body)

    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"prompt": '{["' * 1_000_000}).encode(),
        json.dumps({"prompt": list(range(600_000))}).encode(),
        json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 5}] * 4096}).encode(),
        b"]]]]}}}}" * 100,
        b'"',
        b"",
    ],
)
def test_large_texts_many_ids_and_long_chats_pass(body: bytes) -> None:
    check_structure(body)
