"""The Grafana dashboards: well formed, bound to no particular data source, and every query answered by a real Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .conftest import DASHBOARDS, DATA_TIMEOUT_S, Prometheus, until

UNITS = {"s", "reqps", "ops", "percentunit", "none", "bytes"}
VARIABLE = re.compile(r"label_values\((?:(.*), )?(\w+)\)")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    """The query as Grafana sends it with "All" chosen everywhere."""
    expression = expression.replace("$__rate_interval", "30s")
    return re.sub(r"\$\w+", ".*", expression)


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")
        for path in DASHBOARDS
        for panel in panels(json.loads(path.read_text()))
        for target in panel["targets"]
    ]


def variables() -> list[Any]:
    return [
        pytest.param(variable["definition"], id=f"{path.stem}: {variable['name']}")
        for path in DASHBOARDS
        for variable in json.loads(path.read_text())["templating"]["list"]
        if variable["type"] == "query"
    ]


def test_there_is_a_dashboard_for_fleet_workers_and_operator() -> None:
    assert [path.stem for path in DASHBOARDS] == ["fleet", "operator", "worker"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_leaves_the_data_source_to_its_variable(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    sources = re.findall(r'"uid": "([^"]+)"', json.dumps(dashboard["panels"]) + json.dumps(dashboard["templating"]))

    assert set(sources) == {"${datasource}"}
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    assert "id" not in dashboard, "an id belongs to one Grafana; the uid is what links to it"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_has_a_place_a_unit_and_words(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    found = panels(dashboard)
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len(cells) == len(set(cells)), "panels lie over each other"
    assert max(x for x, _ in cells) < 24
    assert [panel["title"] for panel in found if not panel["description"].endswith(".")] == []
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in found} <= UNITS


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_variable_of_a_query_is_one_of_the_dashboard(path: Path) -> None:
    text = path.read_text()
    known = {variable["name"] for variable in json.loads(text)["templating"]["list"]} | {"__rate_interval", "__all"}

    assert set(re.findall(r"\$\{?(\w+)", text)) <= known


@pytest.mark.parametrize("expression", queries())
def test_a_panel_is_not_empty(prometheus: Prometheus, expression: str) -> None:
    assert until(lambda: prometheus.samples(filled(expression)), f"data for {filled(expression)}", DATA_TIMEOUT_S)


@pytest.mark.parametrize("definition", variables())
def test_a_variable_has_values(prometheus: Prometheus, definition: str) -> None:
    match = VARIABLE.fullmatch(definition)
    assert match is not None
    selector, label = filled(match[1]), match[2]

    values = {sample["metric"].get(label) for sample in prometheus.samples(f"count by ({label}) ({selector})")}

    assert values
    assert None not in values


def test_every_metric_that_a_dashboard_names_is_scraped(prometheus: Prometheus) -> None:
    """A wrong name behind `or vector(0)` would be a panel that always says 0."""
    scraped = set(prometheus.get("label/__name__/values"))
    named = {
        name
        for path in DASHBOARDS
        for panel in panels(json.loads(path.read_text()))
        for target in panel["targets"]
        for name in re.findall(r"\b((?:quire_|vllm:|process_)\w+)\{", target["expr"])
    }

    assert len(named) > 40
    assert named <= scraped
