"""Names are spelt as Kubernetes, HTTP and Prometheus take them, and as the ecosystem reads them."""

import re

from quire_contract import names


def test_metric_names_are_valid_and_unique() -> None:
    listed = names.WORKER_METRICS + names.ROUTER_METRICS

    assert len(set(listed)) == len(listed)
    assert all(re.fullmatch(r"(vllm:|quire_)[a-z0-9_]+", name) for name in listed)


def test_names_that_autoscalers_and_gateways_read_are_exact() -> None:
    read_by_others = {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
    }

    assert read_by_others <= set(names.WORKER_METRICS)


def test_internal_headers_share_the_prefix_that_is_stripped() -> None:
    public = {names.HEADER_REQUEST_ID, names.HEADER_ANTHROPIC_REQUEST_ID, names.HEADER_API_KEY}
    internal = [value for name, value in vars(names).items() if name.startswith("HEADER_") and value not in public]

    assert all(header.startswith(names.INTERNAL_HEADER_PREFIX) for header in internal)
    assert all(header == header.lower() for header in internal)


def test_buckets_ascend() -> None:
    for buckets in (names.BUCKETS_TTFT_S, names.BUCKETS_TOKEN_S, names.BUCKETS_REQUEST_S):
        assert list(buckets) == sorted(set(buckets))
