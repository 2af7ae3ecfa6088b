"""The Prometheus rules: promtool accepts them, its unit tests see alerts fire and not fire, and a real Prometheus has what they select."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_contract import names

from .conftest import DATA_TIMEOUT_S, NOWHERE, ROOT, RULES, Prometheus, until

UNIT_TESTS = Path(__file__).with_name("alerts_test.yaml")
SELECTOR = re.compile(r"\b((?:quire|vllm|process)[\w:]*)(\{[^}]*\})?")


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def selectors() -> list[str]:
    return sorted({"".join(match) for rule in rules() for match in SELECTOR.findall(rule["expr"])})


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a Markdown text get."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_promtool_accepts_the_rules(promtool: str) -> None:
    found = subprocess.run([promtool, "check", "rules", *RULES], capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stderr
    assert "no duplicate" not in found.stdout


def test_alerts_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text())
    tests["rule_files"] = [str(path) for path in RULES]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))

    found = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)

    assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    names_of_alerts = {alert["alert"] for alert in alerts()}

    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names_of_alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names_of_alerts


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_waits_says_what_is_wrong_and_leads_to_its_runbook(alert: dict[str, Any]) -> None:
    annotations = alert["annotations"]
    file, _, anchor = annotations["runbook"].partition("#")

    assert alert["for"]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")
    assert anchor == alert["alert"].lower()
    assert anchor in anchors((ROOT / file).read_text())


@pytest.mark.parametrize("selector", selectors())
def test_a_real_prometheus_has_what_a_rule_selects(prometheus: Prometheus, selector: str) -> None:
    assert until(lambda: prometheus.samples(selector), f"data for {selector}", DATA_TIMEOUT_S)


def test_a_model_without_workers_raises_its_alert_and_nothing_else_is_wrong(prometheus: Prometheus) -> None:
    def raised() -> dict[str, Any]:
        return {alert["labels"]["alertname"]: alert["labels"] for alert in prometheus.get("alerts")["alerts"]}

    until(lambda: "QuireModelWithoutEndpoint" in raised(), "alert", DATA_TIMEOUT_S)

    found = raised()
    assert found["QuireModelWithoutEndpoint"]["model"] == NOWHERE
    assert found.keys() <= {"QuireModelWithoutEndpoint", "QuireErrorBudgetBurnsFast", "QuireErrorBudgetBurnsSlowly"}


def test_every_metric_of_the_contract_is_scraped(prometheus: Prometheus) -> None:
    wanted = {*names.WORKER_METRICS, *names.ROUTER_METRICS, *names.OPERATOR_METRICS}
    scraped = set(prometheus.get("label/__name__/values"))

    missing = {name for name in wanted if not scraped & {name, f"{name}_bucket"}}

    assert missing == set(), json.dumps(sorted(scraped))
