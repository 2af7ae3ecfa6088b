"""The manifests in examples/: this version carries each of them out whole, and an API server takes them as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.tools import Command

from quire_cli.manifest_files import load_services
from quire_operator.api.validation import unsupported_fields

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
OnEach = Callable[[Callable[..., None]], Callable[..., None]]
on_each: OnEach = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@on_each
def test_an_example_asks_for_nothing_that_this_version_lacks(file: Path) -> None:
    problems = [str(problem) for loaded in load_services([file]) for problem in unsupported_fields(loaded.service)]

    assert problems == []


@on_each
def test_an_example_says_what_it_shows_and_how_to_apply_it(file: Path) -> None:
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]

    assert any(f"{tool} {file.relative_to(EXAMPLES.parent)}" in line for line in comment for tool in ("apply -f", "up"))


def test_examples_can_be_applied_together() -> None:
    services = load_services(FILES)

    names = [name for loaded in services for name in loaded.service.served_names]

    assert len(names) == len(set(names))


@on_each
def test_an_api_server_takes_an_example(kubectl: Command, install_crds: list[str], namespace: str, file: Path) -> None:
    made = kubectl("create", "--validate=false", "--dry-run=server", "-n", namespace, "-f", file, "-o", "name")

    assert made.startswith("inferenceservice.quire.dev/")
