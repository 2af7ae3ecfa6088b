"""What the documents promise to explain is explained: every reason that a condition may have."""

import re

from quire_operator import findings

from .conftest import ROOT

STATUS_REASONS = {"InvalidSpec", "NotYetSupported", "NameConflict", "ScaledToZero", "PartiallyServing", "NotServingYet"}
STATUS_REASONS |= {"WaitingForPods", "CanaryFailed", "UpgradeQueued"}


def test_operations_explains_every_reason_for_not_being_ready() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text.partition("### Why a service is not ready")[2].partition("###")[0]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))

    explained = set(re.findall(r"`(\w+)`", first_cells))

    assert explained == {*findings.ORDER, *STATUS_REASONS}
