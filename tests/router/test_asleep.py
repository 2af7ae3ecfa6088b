"""What a router makes of a worker that sleeps."""

from typing import Any

from quire_contract import names
from quire_contract.load_report import LoadReport, decode_report, encode_report
from quire_contract.router_config import EndpointEntry
from quire_router.endpoints import Endpoint
from quire_router.revision_stats import RevisionCounts
from quire_router.upstream import BUSY_REASONS


def report(**values: Any) -> LoadReport:
    counts: dict[str, Any] = {"running": 0, "waiting": 0, "free_blocks": 9, "total_blocks": 9, "uncached_tokens": 0}
    return LoadReport(pod="a", model="m", epoch="e", ts=0.0, kv_seq=0, **counts, **values)


def endpoint(suspicions: list[str]) -> Endpoint:
    made = Endpoint(EndpointEntry(id="a", url="http://a:1", models=["m"]), RevisionCounts())
    made.on_suspect = lambda: suspicions.append("probe")
    made.mark_ready()
    suspicions.clear()
    return made


def test_a_worker_that_reports_asleep_gets_nothing_more_until_a_probe_says_otherwise() -> None:
    worker = endpoint([])

    worker.take_report(report(asleep=True), 1.0)

    assert not worker.ready
    assert not worker.draining
    assert worker.why_not == names.REASON_ASLEEP


def test_a_worker_that_reports_awake_again_is_probed_at_once() -> None:
    suspicions: list[str] = []
    worker = endpoint(suspicions)
    worker.take_report(report(asleep=True), 1.0)
    suspicions.clear()

    worker.take_report(report(), 2.0)
    worker.take_report(report(), 3.0)

    assert suspicions == ["probe"]


def test_a_refusal_for_sleep_is_no_fault_of_the_worker() -> None:
    assert names.REASON_ASLEEP in BUSY_REASONS


def test_a_report_of_an_earlier_release_says_nothing_of_sleep() -> None:
    assert decode_report(encode_report(report())).asleep is False
