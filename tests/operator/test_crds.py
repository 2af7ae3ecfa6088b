"""The CustomResourceDefinitions: up to date, structural, bounded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quire_operator.api.base import NOT_YET_KEY
from quire_operator.api.crds.definitions import crd, crd_yaml, resource_schema, write_crds
from quire_operator.api.resource import GROUP, Kind
from quire_operator.api.validation import KINDS

Schema = dict[str, Any]
IDS = [kind.kind for kind in KINDS]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema below this one, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_the_committed_file_is_what_the_models_say(kind: Kind, repository: Path) -> None:
    committed = (repository / "crds" / f"{GROUP}_{kind.plural}.yaml").read_text()

    assert committed == crd_yaml(kind), "run `make crds`"


def test_crds_are_written_one_file_per_kind(tmp_path: Path) -> None:
    written = write_crds(tmp_path / "new")

    assert sorted(path.name for path in written) == sorted(f"{GROUP}_{kind.plural}.yaml" for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_schemas_are_structural(kind: Kind) -> None:
    forbidden = {"$ref", "$defs", "title", "const", "prefixItems", "nullable", NOT_YET_KEY, "exclusiveMinimum"}

    for path, node in nodes(resource_schema(kind)):
        assert not forbidden & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in node and "additionalProperties" in node), path


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_everything_a_rule_could_walk_is_bounded(kind: Kind) -> None:
    spec = resource_schema(kind)["properties"]["spec"]

    for path, node in nodes(spec):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        elif node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        elif "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_every_field_and_rule_is_explained(kind: Kind) -> None:
    spec = resource_schema(kind)["properties"]["spec"]

    undescribed = [path for path, node in nodes(spec) if "description" not in node and not path.endswith("[]")]
    rules = [rule for _, node in nodes(spec) for rule in node.get("x-kubernetes-validations", [])]

    assert undescribed == []
    assert all(rule["message"] and "\n" not in rule["message"] for rule in rules)


def test_spec_replicas_has_a_default_and_the_scale_subresource_a_selector() -> None:
    definition = crd(KINDS[0])["spec"]
    version = definition["versions"][0]

    assert version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["replicas"]["default"] == 1
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"
    assert definition["names"]["shortNames"] == ["infsvc"]
    assert definition["names"]["categories"] == ["llm"]


def test_a_field_that_is_refused_says_so_in_its_description() -> None:
    spec = resource_schema(KINDS[0])["properties"]["spec"]["properties"]

    told = "(Refused by this version: it needs the hand-off of KV blocks between workers.)"
    assert spec["disaggregation"]["description"].endswith(told)


def test_conditions_are_a_map_by_type() -> None:
    status = resource_schema(KINDS[0])["properties"]["status"]["properties"]

    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
