"""The manifests in examples/: this version carries each of them out whole, and an API server takes them as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.tools import Command

from quire_cli.manifest_files import load_resources
from quire_cli.rendering import render
from quire_operator.api.validation import unsupported_fields

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
OnEach = Callable[[Callable[..., None]], Callable[..., None]]
on_each: OnEach = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@on_each
def test_an_example_asks_for_nothing_that_this_version_lacks(file: Path) -> None:
    services = [loaded.service for loaded in load_resources([file]).services]
    problems = [str(problem) for service in services for problem in unsupported_fields(service)]

    assert problems == []


@on_each
def test_an_example_says_what_it_shows_and_how_to_apply_it(file: Path) -> None:
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]

    assert any(f"{tool} {file.relative_to(EXAMPLES.parent)}" in line for line in comment for tool in ("-f", "up"))


def test_examples_can_be_applied_together() -> None:
    found = load_resources(FILES)

    names = [name for loaded in found.services for name in loaded.service.served_names]
    routes = [document.data["spec"] for document in found.others if document.kind == "ModelRoute"]
    tenants = [document.data["spec"] for document in found.others if document.kind == "Tenant"]

    assert render(found.services).manifests
    assert len(routes) >= 1
    assert len({*names, *(route["model"] for route in routes)}) == len(names) + len(routes)
    for route in routes:
        answering = route.get("targets", []) + route.get("complexity", [])
        assert {*(one["model"] for one in answering), *route.get("fallbacks", [])} <= set(names)
    for tenant in tenants:
        assert {*tenant["models"]} <= {*names, *(route["model"] for route in routes)}


@on_each
def test_an_api_server_takes_an_example(kubectl: Command, install_crds: list[str], namespace: str, file: Path) -> None:
    made = kubectl("create", "--validate=false", "--dry-run=server", "-n", namespace, "-f", file, "-o", "name")

    assert made.startswith(("inferenceservice.quire.dev/", "modelroute.quire.dev/", "tenant.quire.dev/"))
