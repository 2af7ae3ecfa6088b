"""The file of `quire up --router-settings`: what is wrong in it is told with line, field and fix."""

from pathlib import Path

import pytest

from quire_cli.errors import CommandError
from quire_cli.local.router_settings import read_settings
from quire_contract.router_settings import RouterSettingsEntry


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("saving:\n  coalesce: true\nadmision: {}", "3: admision: unknown field; did you mean 'admission'?"),
        ("admission:\n  queueTimeout: 3", "2: admission.queueTimeout: unknown field; did you mean 'queue_timeout_s'?"),
        ("admission: {queue_timeout_s: 1m}", "1: admission.queue_timeout_s: must be a number, not text"),
        ("filters:\n  - pii: [email]", "2: filters[0].name: is required"),
        ("filters: {name: a}", "1: filters: must be a list, not an object"),
        ("[]", "1: must be an object, not a list"),
        ("limits: {lease_percent: 101}", "1: limits.lease_percent: is 101; it must be at most 100"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_line_and_the_fix(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)

    with pytest.raises(CommandError) as error:
        read_settings(file)

    assert error.value.lines == (f"{file}:{told}",)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("pii: [mail]", "filters[0].pii[0]: must be one of api_key, credit_card, email"),
        ("hook: {url: 'http://h/', on_failure: close}", "hook.on_failure: must be one of closed, open, not 'close'"),
        ("hook: {urls: x}", "filters[0].hook.urls: unknown field; did you mean 'url'?"),
        ("patterns: ['(?=x)']", "filters[0].patterns[0]: RE2 refuses '(?=x)': invalid perl operator: (?="),
        ("patterns: ['x*']", "filters[0].patterns[0]: 'x*' matches the empty text"),
    ],
)
def test_a_filter_that_the_router_would_refuse_is_refused_before_it_hears_of_it(
    tmp_path: Path, entry: str, told: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"filters:\n  - {{name: a, {entry}}}\n")

    with pytest.raises(CommandError) as error:
        read_settings(file)

    (line,) = error.value.lines
    assert line.startswith(f"{file}:2: filters[0].")
    assert told in line


def test_whoever_copies_the_charts_levels_is_told_what_the_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("router:\n  settings:\n    usage: {currency: EUR}\n")

    with pytest.raises(CommandError) as error:
        read_settings(file)

    sections = ", ".join(RouterSettingsEntry.__struct_fields__)
    assert error.value.lines == (
        f"{file}:1: router: unknown field; this file holds what the chart has below router.settings: {sections}",
    )


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n")

    settings = read_settings(file)

    assert settings == RouterSettingsEntry()
