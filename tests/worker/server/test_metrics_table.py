"""Every metric by name, type and labels: dashboards, autoscalers and gateways read them, and a stale name never errors there."""

from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire_worker.engine.messages import Stats
from quire_worker.server.metrics import Metrics
from quire_worker.server.orca import load_header

MODEL = frozenset({"model_name", "engine"})
TABLE: dict[str, tuple[str, frozenset[str]]] = {
    # name without _total: type, labels (le left out)
    "vllm:num_requests_running": ("gauge", MODEL),
    "vllm:num_requests_waiting": ("gauge", MODEL),
    "vllm:num_requests_waiting_by_reason": ("gauge", MODEL | {"reason"}),
    "vllm:kv_cache_usage_perc": ("gauge", MODEL),
    "vllm:engine_sleep_state": ("gauge", MODEL | {"sleep_state"}),
    "vllm:cache_config_info": (
        "gauge",
        MODEL | {"block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"},
    ),
    "vllm:prompt_tokens": ("counter", MODEL),
    "vllm:generation_tokens": ("counter", MODEL),
    "vllm:request_success": ("counter", MODEL | {"finished_reason"}),
    "vllm:num_preemptions": ("counter", MODEL),
    "vllm:prefix_cache_queries": ("counter", MODEL),
    "vllm:prefix_cache_hits": ("counter", MODEL),
    "vllm:external_prefix_cache_queries": ("counter", MODEL),
    "vllm:external_prefix_cache_hits": ("counter", MODEL),
    "vllm:mm_cache_queries": ("counter", MODEL),
    "vllm:mm_cache_hits": ("counter", MODEL),
    "vllm:prompt_tokens_cached": ("counter", MODEL),
    "vllm:prompt_tokens_by_source": ("counter", MODEL | {"source"}),
    "vllm:prompt_tokens_cached_by_source": ("counter", MODEL | {"source"}),
    "vllm:admission_rejections": ("counter", MODEL | {"reason"}),
    "vllm:time_to_first_token_seconds": ("histogram", MODEL),
    "vllm:inter_token_latency_seconds": ("histogram", MODEL),
    "vllm:request_time_per_output_token_seconds": ("histogram", MODEL),
    "vllm:e2e_request_latency_seconds": ("histogram", MODEL),
    "vllm:request_queue_time_seconds": ("histogram", MODEL),
    "vllm:request_inference_time_seconds": ("histogram", MODEL),
    "vllm:request_prefill_time_seconds": ("histogram", MODEL),
    "vllm:request_decode_time_seconds": ("histogram", MODEL),
    "vllm:request_prompt_tokens": ("histogram", MODEL),
    "vllm:request_generation_tokens": ("histogram", MODEL),
    "vllm:request_max_num_generation_tokens": ("histogram", MODEL),
    "vllm:request_params_n": ("histogram", MODEL),
    "vllm:request_params_max_tokens": ("histogram", MODEL),
    "vllm:iteration_tokens_total": ("histogram", MODEL),
    "vllm:request_num_preemptions": ("histogram", MODEL),
    "vllm:request_prefill_kv_computed_tokens": ("histogram", MODEL),
    "quire_worker_step_seconds": ("histogram", MODEL),
    "quire_worker_steps": ("counter", MODEL),
    "quire_worker_startup_seconds": ("gauge", frozenset({"model_name", "phase"})),
    "quire_worker_ready": ("gauge", MODEL),
    "quire_worker_draining": ("gauge", MODEL),
    "quire_worker_http_requests": ("counter", frozenset({"route", "code"})),
    "quire_worker_resident_memory_bytes": ("gauge", frozenset({"process"})),
    "quire_worker_build_info": ("gauge", frozenset({"version"})),
}
LEGACY: dict[str, tuple[str, frozenset[str]]] = {
    "vllm:gpu_cache_usage_perc": ("gauge", MODEL),
    "vllm:cpu_cache_usage_perc": ("gauge", MODEL),
    "vllm:num_requests_swapped": ("gauge", MODEL),
    "vllm:gpu_prefix_cache_hit_rate": ("gauge", MODEL),
    "vllm:gpu_prefix_cache_queries": ("counter", MODEL),
    "vllm:gpu_prefix_cache_hits": ("counter", MODEL),
    "vllm:time_per_output_token_seconds": ("histogram", MODEL),
    "vllm:avg_prompt_throughput_toks_per_s": ("gauge", MODEL),
    "vllm:avg_generation_throughput_toks_per_s": ("gauge", MODEL),
}


def table_of(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    found = {}
    for family in text_string_to_metric_families(text):
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        found[family.name] = (family.type, labels)
    return found


async def metrics_of(http: aiohttp.ClientSession, worker: Any) -> str:
    body = {"model": "tiny", "prompt": "the fox", "max_tokens": 3}
    async with http.post(f"{worker.base}/v1/completions", json=body) as response:
        assert response.status == 200
    async with http.get(f"{worker.base}/metrics") as response:
        return await response.text()


@pytest.mark.parametrize("flags", [(), ("--legacy-metrics",)])
async def test_names_types_and_labels_are_those_that_are_read(
    http: aiohttp.ClientSession, launch: Callable[..., Any], flags: tuple[str, ...]
) -> None:
    worker = launch(*flags).wait_until_ready()

    shown = table_of(await metrics_of(http, worker))

    wanted = {**TABLE, **LEGACY} if flags else TABLE
    assert {name: shown.get(name) for name in wanted} == wanted
    assert (LEGACY.keys() & shown.keys()) == (LEGACY.keys() if flags else set())


async def test_start_up_is_timed_by_phase_and_memory_is_told_by_process(
    http: aiohttp.ClientSession, worker: Any, metric: Any
) -> None:
    text = await metrics_of(http, worker)

    phases = {
        sample.labels["phase"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name == "quire_worker_startup_seconds"
    }
    assert phases.keys() >= {"tokenizer", "total"}
    assert 0 < phases["tokenizer"] <= phases["total"]
    for process in ("api", "engine"):
        assert 10_000_000 < await metric(worker, "quire_worker_resident_memory_bytes", process=process) < 10_000_000_000


def test_buckets_resolve_steps_of_milliseconds_and_short_queues() -> None:
    text = Metrics("tiny", "1").render().decode()

    def edges(name: str) -> list[float]:
        samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
            if sample.name == f"{name}_bucket"
        ]  # fmt: skip
        return [float(sample.labels["le"]) for sample in samples]

    assert sum(edge <= 0.01 for edge in edges("vllm:inter_token_latency_seconds")) >= 5
    assert sum(edge <= 0.01 for edge in edges("quire_worker_step_seconds")) >= 5
    for name in ("queue", "prefill"):
        assert sum(edge < 0.3 for edge in edges(f"vllm:request_{name}_time_seconds")) >= 4


def test_the_removed_names_tell_what_todays_tell() -> None:
    metrics = Metrics("tiny", "1", legacy=True)
    stats = Stats(
        num_steps=1, num_running=1, num_waiting=0, num_free_blocks=60, num_blocks=101, num_preemptions=0, num_prompt_tokens=50,
        num_cached_tokens=0, num_generated_tokens=5, prefix_queries=40, prefix_hits=10,
    )  # fmt: skip

    metrics.on_stats(stats)
    metrics.on_next_tokens(0.004)
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }

    assert samples["vllm:gpu_cache_usage_perc"] == samples["vllm:kv_cache_usage_perc"] == pytest.approx(0.4)
    assert samples["vllm:gpu_prefix_cache_hit_rate"] == 0.25
    assert samples["vllm:gpu_prefix_cache_queries_total"] == samples["vllm:prefix_cache_queries_total"] == 40
    assert samples["vllm:time_per_output_token_seconds_count"] == 1
    assert samples["vllm:external_prefix_cache_queries_total"] == 0


def test_what_waits_for_its_grammar_waits() -> None:
    metrics = Metrics("tiny", "1")
    stats = Stats(
        num_steps=1, num_running=1, num_waiting=4, num_free_blocks=60, num_blocks=101, num_preemptions=0, num_prompt_tokens=50,
        num_cached_tokens=0, num_generated_tokens=5, prefix_queries=40, prefix_hits=10, num_deferred=1, num_at_desk=3,
    )  # fmt: skip

    metrics.on_stats(stats)
    samples = {
        (sample.name, sample.labels.get("reason")): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }

    assert samples["vllm:num_requests_waiting", None] == 7
    assert samples["vllm:num_requests_waiting_by_reason", "capacity"] == 3
    assert samples["vllm:num_requests_waiting_by_reason", "deferred"] == 4
    assert samples["quire_worker_grammar_waiting", None] == 3
    assert load_header("json", stats).endswith('"num_requests_waiting": 7.0}}')


@pytest.mark.parametrize(
    ("form", "begins"), [("TEXT", "TEXT named_metrics.kv_cache_usage_perc="), ("json", 'JSON {"named_metrics": {"kv_')]
)
async def test_load_comes_in_a_header_for_gateways_that_ask(
    http: aiohttp.ClientSession, worker: Any, form: str, begins: str
) -> None:
    body = {"model": "tiny", "prompt": "the fox", "max_tokens": 1}
    async with http.post(
        f"{worker.base}/v1/completions", json=body, headers={"endpoint-load-metrics-format": form}
    ) as response:
        told = response.headers["endpoint-load-metrics"]
    async with http.post(f"{worker.base}/v1/completions", json=body) as response:
        unasked = "endpoint-load-metrics" in response.headers

    assert told.startswith(begins)
    assert "num_requests_waiting" in told
    assert not unasked
