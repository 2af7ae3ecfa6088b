"""The worker's load in a response header, for gateways that ask for it in the form of ORCA (Open Request Cost Aggregation).

https://github.com/envoyproxy/envoy/issues/6614; names and forms as in vLLM, whose users' gateways read them.
"""

import json

from quire_worker.engine.messages import Stats

REQUEST_HEADER = "endpoint-load-metrics-format"
RESPONSE_HEADER = "endpoint-load-metrics"


def load_header(form: str, stats: Stats | None) -> str | None:
    """The value of the response header; None for a form that is not known, or before the engine has told anything."""
    if stats is None:
        return None
    usage = max(0.0, 1 - stats.num_free_blocks / max(1, stats.num_blocks - 1))
    waiting = float(stats.num_waiting + stats.num_at_desk)
    values = {"kv_cache_usage_perc": round(usage, 6), "num_requests_waiting": waiting}
    match form.strip().upper():
        case "TEXT":
            return "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in values.items())
        case "JSON":
            return "JSON " + json.dumps({"named_metrics": values})
    return None
