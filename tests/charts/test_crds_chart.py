"""The chart quire-crds installs what `make crds` writes, word for word."""

from pathlib import Path

import pytest
import yaml

from .chart import Chart, ChartRefusedError, of_kind

KEEP = "helm.sh/resource-policy"


def test_the_charts_files_are_those_of_crds(crds_chart: Chart, repository: Path) -> None:
    written = {path.name: path.read_text() for path in (repository / "crds").glob("*.yaml")}
    copied = {path.name: path.read_text() for path in (crds_chart.folder / "files").glob("*.yaml")}

    assert copied == written, "run `make crds`"


def test_definitions_are_those_of_the_files_but_for_labels_and_annotations(crds_chart: Chart) -> None:
    written = [yaml.safe_load(path.read_text()) for path in sorted((crds_chart.folder / "files").glob("*.yaml"))]

    rendered = of_kind(crds_chart.render(), "CustomResourceDefinition")

    for item in rendered.values():
        assert item["metadata"].pop("annotations") == {KEEP: "keep"}
        assert item["metadata"].pop("labels")["app.kubernetes.io/component"] == "crds"
    assert [rendered[name] for name in sorted(rendered)] == written


def test_definitions_go_with_the_chart_where_that_is_wanted(crds_chart: Chart) -> None:
    for item in of_kind(crds_chart.render({"keep": False}), "CustomResourceDefinition").values():
        assert "annotations" not in item["metadata"]


def test_who_may_edit_a_namespace_may_serve_models_in_it(crds_chart: Chart) -> None:
    roles = of_kind(crds_chart.render(name="crds"), "ClusterRole")

    assert roles.keys() == {"crds-view", "crds-edit"}
    aggregated = {
        name: {key for key in role["metadata"]["labels"] if "aggregate-to" in key} for name, role in roles.items()
    }
    prefix = "rbac.authorization.k8s.io/aggregate-to"
    assert aggregated["crds-view"] == {f"{prefix}-view", f"{prefix}-edit", f"{prefix}-admin"}
    assert aggregated["crds-edit"] == {f"{prefix}-edit", f"{prefix}-admin"}
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert rule["apiGroups"] == ["quire.dev"]
    # Status is the operator's to write.
    assert not any("inferenceservices/status" in rule["resources"] for rule in roles["crds-edit"]["rules"])


def test_roles_are_a_choice_and_labels_reach_everything(crds_chart: Chart) -> None:
    rendered = crds_chart.render({"aggregateRoles": False, "commonLabels": {"team": "a"}})

    assert {item["kind"] for item in rendered} == {"CustomResourceDefinition"}
    assert {item["metadata"]["labels"]["team"] for item in rendered} == {"a"}


@pytest.mark.parametrize("values", [{"keeep": True}, {"keep": "yes"}, {"commonLabels": {"a": 1}}])
def test_unknown_and_wrong_values_are_refused(crds_chart: Chart, values: dict[str, object]) -> None:
    with pytest.raises(ChartRefusedError, match="values don't meet the specifications of the schema"):
        crds_chart.render(values)
