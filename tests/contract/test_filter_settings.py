"""What a router's configuration may say about content filters."""

import pytest

from quire_contract.router_settings import FilterEntry, ModerationHook, RouterSettingsEntry, settings_problem


def hook(**values: object) -> FilterEntry:
    return FilterEntry(name="h", hook=ModerationHook(**{"url": "https://judge/check", **values}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (FilterEntry(name="a b", words=["x"]), "name"),
        (FilterEntry(name="x" * 65, words=["x"]), "name"),
        (FilterEntry(name="x"), "patterns: give exactly one"),
        (FilterEntry(name="x", words=["x"], pii=["email"]), "patterns: give exactly one"),
        (FilterEntry(name="x", words=["fine", "  "]), "words[1]"),
        (FilterEntry(name="x", patterns=["x" * 2001]), "patterns[0]"),
        (FilterEntry(name="x", patterns=["x"] * 65), "patterns: has 65 entries"),
        (FilterEntry(name="x", patterns=["x"], max_match_bytes=0), "max_match_bytes"),
        (FilterEntry(name="x", patterns=["x"], replacement="x" * 201), "replacement"),
        (FilterEntry(name="x", max_chars=0), "max_chars"),
        (FilterEntry(name="x", max_chars=5, stage="output"), "max_chars"),
        (FilterEntry(name="x", max_chars=5, action="redact"), "action"),
        (hook(url="ftp://judge"), "hook.url"),
        (hook(url="http://user:secret@judge/"), "hook.url"),
        (hook(url="http://[::1"), "hook.url"),
        (hook(timeout_s=0), "hook.timeout_s"),
        (hook(header_env="A B"), "hook.header_env"),
        (hook(check_chars=1), "hook.check_chars"),
    ],
)
def test_a_wrong_filter_is_refused_by_its_field(entry: FilterEntry, problem: str) -> None:
    found = settings_problem(RouterSettingsEntry(filters=[entry]))

    assert found is not None
    assert found.startswith(f"filters[0].{problem}")


def test_filters_that_can_be_used_are_taken() -> None:
    entries = [
        FilterEntry(name="a", words=["x"] * 20_000),
        FilterEntry(name="b", pii=["email"], action="redact"),
        FilterEntry(name="c", max_chars=1),
        hook(header_env="JUDGE_KEY"),
    ]

    assert settings_problem(RouterSettingsEntry(filters=entries)) is None
    assert settings_problem(RouterSettingsEntry(filters=[entries[0]] * 2)) == "filters[1].name: 'a' is used twice"
