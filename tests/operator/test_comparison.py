"""When a live object counts as what we want."""

import pytest

from quire_operator.comparison import applied_hash, holds, with_hash


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "added": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({}, {"a": None}, True),
        ({}, {"a": {}}, True),
        ({"a": True}, {"a": 1}, False),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"limits": {"cpu": "1000m", "memory": "1024Mi"}}, True),
        ({"limits": {"cpu": "2"}}, {"limits": {"cpu": "1"}}, False),
        ({"args": ["1000m"]}, {"args": ["1"]}, False),
        ({"args": ["a", "b"]}, {"args": ["a"]}, False),
        ({"env": [{"name": "x", "value": "1"}, {"name": "y"}]}, {"env": [{"name": "x", "value": "1"}]}, True),
        ({"env": [{"name": "x", "value": "2"}]}, {"env": [{"name": "x", "value": "1"}]}, False),
        ({"ports": [{"port": 1, "protocol": "TCP"}]}, {"ports": [{"port": 1}]}, True),
    ],
)
def test_defaults_additions_and_spellings_of_quantities_are_no_differences(live, wanted, same) -> None:
    assert holds(live, wanted) is same


def test_the_digest_depends_on_content_only() -> None:
    one = {"kind": "X", "metadata": {"name": "a", "labels": {"b": "1", "c": "2"}}}
    other = {"metadata": {"labels": {"c": "2", "b": "1"}, "name": "a"}, "kind": "X"}

    assert applied_hash(one) == applied_hash(other)
    assert with_hash(one)["metadata"]["annotations"] == {"quire.dev/applied": applied_hash(one)}
    assert "annotations" not in one["metadata"]
