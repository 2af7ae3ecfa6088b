"""/metrics has the names that dashboards read, with the truth in them; the log has one line a request and no prompt."""

import re
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from quire_contract import names
from quire_worker.server.metrics import Metrics

CORE = (
    *names.WORKER_METRICS,
    "vllm:num_requests_waiting_by_reason",
    "vllm:engine_sleep_state",
    "vllm:prompt_tokens_by_source_total",
    "vllm:prompt_tokens_cached_by_source_total",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_prefill_kv_computed_tokens",
    "quire_worker_ready",
    "process_resident_memory_bytes",
)
SECRET = "a secret sentence about foxes"


@pytest.fixture(scope="module")
def used(launch_in_module: Callable[..., Any]) -> Any:
    """A worker whose only requests are those of this module."""
    return launch_in_module("--served-model-name", "tiny").wait_until_ready()


async def test_requests_show_in_the_metrics_and_the_log(
    http: aiohttp.ClientSession, used: Any, metric: Any, eventually: Any
) -> None:
    body = {"model": "tiny", "prompt": SECRET, "max_tokens": 10, "ignore_eos": True, "n": 2}
    for stream in (False, True):
        headers = {"X-Request-Id": f"counted-{stream}"}
        async with http.post(
            f"{used.base}/v1/completions", json={**body, "stream": stream}, headers=headers
        ) as response:
            text = await response.text()

    await eventually(lambda: metric(used, "vllm:generation_tokens_total", model_name="tiny", engine="0"), 40)
    await eventually(lambda: metric(used, "vllm:num_requests_running"), 0)
    assert await metric(used, "vllm:request_success_total", finished_reason="length") == 4
    assert await metric(used, "vllm:prompt_tokens_total") > 0
    assert await metric(used, "vllm:e2e_request_latency_seconds_count") == 2
    assert await metric(used, "vllm:time_to_first_token_seconds_count") == 2
    assert await metric(used, "vllm:inter_token_latency_seconds_count") > 0
    assert await metric(used, "vllm:request_queue_time_seconds_count") == 4
    assert await metric(used, "vllm:request_prefill_time_seconds_count") == 2
    assert await metric(used, "vllm:request_inference_time_seconds_count") == 2
    assert await metric(used, "vllm:request_params_n_sum") == 4
    assert await metric(used, "vllm:iteration_tokens_total_count") > 0
    assert await metric(used, "quire_worker_http_requests_total", route="/v1/completions", code="200") == 2
    assert await metric(used, "quire_worker_ready") == 1
    assert await metric(used, "vllm:cache_config_info", block_size="16") == 1
    used.wait_for_log(
        r'event="request finished" request_id=counted-True route=/v1/completions finish=length n=2 prompt_tokens=\d+'
    )
    assert SECRET not in used.log
    assert "fox" not in used.log
    assert text.endswith("data: [DONE]\n\n")


async def test_all_names_are_there(http: aiohttp.ClientSession, used: Any) -> None:
    async with http.get(f"{used.base}/metrics") as response:
        text = await response.text()

    shown = set(re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{| )", text, re.MULTILINE))
    missing = [name for name in CORE if name not in shown and f"{name}_bucket" not in shown]
    assert missing == []
    assert response.headers["Content-Type"].startswith("text/plain")


async def test_refusals_are_counted(http: aiohttp.ClientSession, used: Any, metric: Any) -> None:
    await http.post(f"{used.base}/internal/drain")
    refused = await http.post(f"{used.base}/v1/completions", json={"model": "tiny", "prompt": "x"})
    draining = await metric(used, "quire_worker_draining")
    await http.delete(f"{used.base}/internal/drain")

    assert refused.status == 503
    assert draining == 1
    assert await metric(used, "vllm:admission_rejections_total", reason="draining") == 1


def test_while_loading_the_names_are_there_already() -> None:
    text = Metrics("tiny", "1").render().decode()

    assert [name for name in names.WORKER_METRICS if name.removesuffix("_total") not in text] == []


def test_buckets_resolve_a_step_of_three_milliseconds() -> None:
    edges = [edge for edge in names.BUCKETS_TOKEN_S if edge <= 0.01]

    assert len(edges) >= 5
